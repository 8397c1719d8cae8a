"""The report that a run ends with, in a real browser: every tab and control, by mouse and keys, in light, dark and on a narrow screen.

`ZKIT_REPORT_OF` names the folder of a run to look at instead of the quickstart in miniature; `ZKIT_SCREENSHOTS`, a folder for pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import barriers, chromium, opened
from made_runs import write_run

from zephyr_kit import cli
from zephyr_kit.facts import read_run
from zephyr_kit.report import FORMATS

SEEN = "[...document.querySelectorAll('{}')].filter(each => each.offsetParent)"
"""What of these is to be seen, in the page's own language."""
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 380, "height": 800}
LOOKS = {
    "light": {"viewport": WIDE, "color_scheme": "light"},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "narrow": {"viewport": NARROW, "color_scheme": "light"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, which has ended by writing its report."""
    if folder := os.environ.get("ZKIT_REPORT_OF"):
        return Path(folder).resolve()
    output = tmp_path_factory.mktemp("runs") / "quickstart"
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "quickstart", "--smoke", "--output", str(output)])
    assert caught.value.code == 0
    return output


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept."""
    folder = Path(os.environ.get("ZKIT_SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    runs = [read_run(write_run(folder / name, beta=beta, num_steps=int(60 * beta))) for name, beta in (("weak", 0.25), ("strong", 0.5))]
    page = folder / "report.html"
    page.write_text(FORMATS["html"](runs), "utf-8")
    return page


def ready(page: Any) -> None:
    page.wait_for_selector("html[data-ready]")
    page.wait_for_function(f"{SEEN.format('.plot')}.every(box => box.classList.contains('drawn'))")


def tabs(page: Any) -> list[str]:
    return page.eval_on_selector_all("[role=tab]", "tabs => tabs.map(tab => tab.id)")


def heights(page: Any) -> list[int]:
    """Of the drawings that are to be seen."""
    return page.evaluate(f"{SEEN.format('.plot .svg-container')}.map(box => box.clientHeight)")


@pytest.mark.slow
@pytest.mark.parametrize("look", LOOKS)
def test_every_tab_can_be_read_by_everybody(browser: Any, run: Path, pictures: Path, look: str) -> None:
    with opened(browser, (run / "report.html").as_uri(), **LOOKS[look]) as page:
        for name in tabs(page):
            page.click(f"#{name}")
            ready(page)
            if name == "tab-settings":
                page.fill("#find", "objective")  # all of them take axe as long as the rest together
            assert page.get_attribute(f"#{name}", "aria-selected") == "true"
            assert page.evaluate(f"{SEEN.format('[role=tabpanel]')}.length") == 1
            assert barriers(page) == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
            page.screenshot(path=pictures / f"{name}-{look}.png", full_page=True)
        assert len(list(pictures.glob(f"*-{look}.png"))) == len(tabs(page))


@pytest.mark.slow
def test_every_control_of_a_runs_report_works(browser: Any, run: Path) -> None:
    with opened(browser, (run / "report.html").as_uri(), **LOOKS["light"]) as page:
        page.click("#tab-curves")
        ready(page)
        for stage in page.query_selector_all("input[name=stage]"):
            stage.check(force=True)
            ready(page)
            assert page.is_visible(f"[data-stage={stage.get_attribute('value')}]")
            for value in ("examples", "tokens", "flops", "hours", "step"):
                page.select_option("#axis", value)
                ready(page)
                assert len(heights(page)) >= 5
        title = page.text_content(".plot:visible .xtitle")
        assert title == "optimiser steps"
        for smooth in ("0", "100"):
            page.fill("#smooth", smooth)
        page.check("#log")
        ready(page)
        for summary in page.query_selector_all("#curves summary:visible"):
            summary.click()
        assert len(page.query_selector_all("#curves figure table:visible")) == len(heights(page))
        assert barriers(page) == []


@pytest.mark.slow
def test_tabs_go_by_keys_and_by_address(browser: Any, several: Path) -> None:
    with opened(browser, several.as_uri()) as page:
        ready(page)
        names = tabs(page)
        page.focus(f"#{names[0]}")
        for key, expected in (("ArrowRight", 1), ("End", -1), ("ArrowRight", 0), ("ArrowLeft", -1), ("Home", 0)):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.id") == names[expected]
        page.evaluate("location.hash = '#cost'")
        page.wait_for_selector("#cost:visible")
        page.reload()
        assert page.is_visible("#cost")


@pytest.mark.slow
def test_colours_can_be_chosen(browser: Any, several: Path) -> None:
    with opened(browser, several.as_uri() + "#curves", color_scheme="light") as page:
        ready(page)
        paper = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(paper)
        for theme, same in (("dark", False), ("light", True), ("system", True)):
            page.check(f"input[name=theme][value={theme}]", force=True)
            ready(page)
            assert (page.evaluate(paper) == light) == same
            assert barriers(page) == []
        page.emulate_media(color_scheme="dark")
        ready(page)
        assert page.evaluate(paper) != light


@pytest.mark.slow
def test_runs_can_be_left_out_and_settings_found(browser: Any, several: Path) -> None:
    with opened(browser, several.as_uri() + "#curves") as page:
        ready(page)
        count = "document.querySelectorAll('[data-stage=dpo] [data-plot=dpo-loss] .scatterlayer .trace').length"
        both = page.evaluate(count)
        page.uncheck("input[name=run][value='0']")
        ready(page)
        assert page.evaluate(count) == both / 2
        page.click("#tab-settings")
        assert page.text_content("#settings td:text('0.5')") == "0.5"
        page.fill("#find", "objective.beta")
        assert page.evaluate(f"{SEEN.format('.settings tbody tr')}.length") == 1
        page.fill("#find", "")
        page.check("#given")
        page.check("input[name=run][value='0']")
        assert page.evaluate(f"{SEEN.format('.settings tbody tr')}.map(row => row.cells[0].innerText)") == ["name", "name"]


@pytest.mark.slow
def test_without_scripts_all_of_it_is_there(browser: Any, several: Path) -> None:
    with opened(browser, several.as_uri(), java_script_enabled=False) as page:
        assert page.is_visible("text=Once upon a time.")
        assert page.is_visible("text=Where the presets differ")

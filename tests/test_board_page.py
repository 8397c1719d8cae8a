"""What the board's page says of runs that stand at several stages, in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from browser import barriers, chromium, opened
from made_runs import put, write_run
from test_board import ask, served

from zephyr_kit.board import watch as watching
from zephyr_kit.board.watch import Watch, summary
from zephyr_kit.facts import read_run
from zephyr_kit.report import FORMATS
from zephyr_kit.runs import RunFolder

LONG_AGO = datetime.now(UTC) - timedelta(minutes=12)


def stopped_at(folder: Path, stage: str) -> Path:
    """A run that is at work on a stage, since twelve minutes."""
    run = write_run(folder)
    names = ["sft", "feedback", "dpo", "evaluate"]
    for later in names[names.index(stage) + 1 :]:
        shutil.rmtree(run / later)
    (run / stage / "done.json").unlink()
    notes = json.loads((run / "run.json").read_text("utf-8"))[: names.index(stage) + 1]
    notes[-1] |= {"began": LONG_AGO.isoformat(), "seconds": None, "outcome": ""}
    put(run / "run.json", notes)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One done, one that gathers feedback, and one whose DPO has not looked at held-out data yet."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "done")
    fed, trained = stopped_at(folder / "fed", "feedback"), stopped_at(folder / "trained", "dpo")
    steps = (trained / "dpo" / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    (trained / "dpo" / "metrics.jsonl").write_text("".join(steps[:5]), "utf-8")
    with ExitStack() as locks:
        for run in (fed, trained):
            locks.enter_context(RunFolder(run).locked())
        yield folder


def test_locks_are_read_once_for_all_runs(runs, monkeypatch):
    reads = []
    monkeypatch.setattr(watching, "held_locks", lambda: reads.append(1) or frozenset())
    assert len(Watch(runs).runs()) == 3
    assert len(reads) == 1


def test_when_a_stage_was_begun_is_told_while_it_runs(runs):
    told = summary(Watch(runs).runs())
    assert told["fed"]["stages"]["feedback"]["began"] == LONG_AGO.timestamp()
    assert told["done"]["stages"]["feedback"]["began"] is None


def test_report_and_board_draw_by_one_script(runs):
    with served(runs) as board:
        status, _, script = ask(board, "/drawing.js")
    assert status == 200
    assert script.decode() in FORMATS["html"]([read_run(runs / "done")])


@pytest.fixture(scope="module")
def page(runs: Path) -> Iterator[Any]:
    with chromium() as browser, served(runs) as board, opened(browser, board.address, viewport={"width": 1300, "height": 1000}) as page:
        page.locator("#plots .main-svg").first.wait_for()
        yield page


def cells(page: Any, column: int) -> dict[str, str]:
    rows = page.locator("#runs tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td, th").nth(column).inner_text().strip() for row in rows}


@pytest.mark.slow
def test_a_figure_is_that_of_the_stage_that_trained_last_and_says_so(page):
    assert cells(page, 4) == {"done": "0.1 dpo held_out/loss", "fed": "0.1 sft held_out/loss", "trained": "–"}
    page.locator("#figure").select_option("loss")
    page.locator("thead").get_by_role("button", name="Figure").click()
    assert list(cells(page, 4).items()) == [("trained", "0.2 dpo loss"), ("done", "0.05 dpo loss"), ("fed", "0.05 sft loss")]


@pytest.mark.slow
def test_a_stage_without_steps_says_how_long_it_has_been_at_it(page):
    told = cells(page, 3)["fed"]
    # The page was drawn at any moment since the tests were collected.
    gone = (datetime.now(UTC) - LONG_AGO) // timedelta(minutes=1)
    assert told in [f"feedback, for {minutes} min" for minutes in range(12, gone + 1)]


@pytest.mark.slow
def test_lines_are_explained_and_bytes_are_told_as_they_are_drawn(page):
    told = {figure.locator("b").inner_text(): figure.locator(".legend span").all_inner_texts() for figure in page.locator("figure").all()}
    assert [text.strip() for text in told["Rewards"]] == ["chosen", "rejected"]
    assert [text.strip() for text in told["Loss"]] == ["training", "held-out"]
    assert told["Gradient norm"] == []
    memory = page.locator("#figures tr", has_text="memory").locator("td").all_inner_texts()
    assert sorted(memory) == ["0.004883 GiB", "0.01953 GiB", "–"]
    assert barriers(page) == []


@pytest.mark.slow
def test_a_smoothed_line_ends_where_it_ends(page):
    line = [float(number) for number in range(9)]
    assert page.evaluate("line => smoothed(line, 1)", line) == line
    assert page.evaluate("smoothed([0, 3, null, 3, 0, 9], 1)") == [0, 1.5, None, 1.5, 4, 9]


@pytest.mark.slow
def test_a_card_has_room_for_its_plot_and_does_not_stretch_others(page):
    height = "figures => figures.map((figure) => figure.clientHeight)"
    before = page.locator("figure").evaluate_all(height)
    page.locator("figure summary").first.click()
    assert page.locator("figure").evaluate_all(height)[1] <= before[1]
    page.locator("figure summary").first.click()
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_timeout(300)
    ends = "boxes => boxes.map((box) => [box, box.querySelector('.xtitle')].map((each) => each.getBoundingClientRect().bottom))"
    assert all(box >= title for box, title in page.locator("#plots .plot").evaluate_all(ends))

"""The documentation: every page is reached, every link leads somewhere, and what it shows works as shown."""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
import tomllib
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import click
import markdown
import pytest
import yaml
from test_readme import REST, TRAIN

from zephyr_kit import cli
from zephyr_kit.plugins import OFFERS, Plugins
from zephyr_kit.preset import Header, resolve
from zephyr_kit.stages import KINDS, Train

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs_site"))

import hooks  # noqa: E402  a module of mkdocs', beside which the others stand
from commands import commands_page, helps  # noqa: E402
from equations import Equations  # noqa: E402
from keys import offers_page, preset_page  # noqa: E402

DOCS = ROOT / "docs"
PAGES = sorted(hooks.pages(DOCS))
TEXTS = [*(f"docs/{page}" for page in PAGES), "README.md", "CONTRIBUTING.md"]
SHOWN = re.compile(r"(?:\w+=\S+ )*(?:\.venv/bin/)?zkit (.+)")
OURS = ["tutorial.md", *(page for page in PAGES if page.startswith(("how-to/", "explanation/")))]
"""Pages whose code runs; other pages have tests of their own, or excerpts."""


def blocks(page: str, language: str) -> list[str]:
    """Code of a page, also where it stands in a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", (ROOT / page).read_text("utf-8"), re.S | re.M)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in found]


@cache
def group() -> click.Group:
    return cli.build()


# Pages


def test_no_page_is_lost():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    _, named = hooks.navigation(nav, DOCS)
    assert sorted(set(PAGES) - named) == []
    assert {uri for uri in hooks.GENERATED if uri not in named} == set()


def test_what_is_not_there_is_left_out_of_the_navigation(tmp_path):
    (tmp_path / "notes").mkdir()
    for name in ("a.md", "notes/2.md", "notes/1.md"):
        (tmp_path / name).touch()
    nav = ["a.md", "b.md", {"Named": "a.md"}, {"Empty": ["c.md"]}, {"Notes": ["notes/"]}]
    kept, named = hooks.navigation(nav, tmp_path)
    assert kept == ["a.md", {"Named": "a.md"}, {"Notes": ["notes/1.md", "notes/2.md"]}]
    assert named == {"a.md", "notes/1.md", "notes/2.md"}


WITH_LINKS = [*TEXTS, "CHANGELOG.md", "SECURITY.md", *(f"docs/{page}" for page in hooks.GENERATED)]
AIM = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


@cache
def prose(page: str) -> str:
    """A page of the repository, or one that is made when the site is built, without its blocks of code."""
    made = hooks.GENERATED.get(page.removeprefix("docs/"))
    text = made() if made else (ROOT / page).read_text("utf-8")
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.S | re.M)


def anchors(page: str) -> set[str]:
    """What a link to a part of a page may name: what GitHub and the site both make of a heading."""
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in re.findall(r"^#+ (.+)$", prose(page), re.M))
    bare = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in plain]
    of_github, of_site = ([re.sub(space, "-", heading) for heading in bare] for space in (r"\s", r"[\s-]+"))
    return {one for one, other in zip(of_github, of_site, strict=True) if one == other and of_site.count(one) == 1}


@pytest.mark.parametrize("page", WITH_LINKS)
def test_links_lead_somewhere(page):
    for link in map("".join, AIM.findall(prose(page))):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = os.path.relpath((ROOT / page).parent / path, ROOT) if path else page
        assert (ROOT / target).exists() or target.removeprefix("docs/") in hooks.GENERATED, link
        assert not anchor or anchor in anchors(target), link


def test_anchors_are_those_of_both_readers(monkeypatch):
    text = "# A `b` C\n## A - b\n```sh\n# no\n```\n## Twice\n## Twice\n### [To](x.md) it, now\n"
    monkeypatch.setitem(hooks.GENERATED, "made.md", lambda: text)
    assert anchors("docs/made.md") == {"a-b-c", "to-it-now"}


def test_equations_are_set_and_code_is_left_alone():
    page = markdown.markdown("$-\\log\\sigma(-h_w)$ costs `$5 or $6`, and $7.", extensions=[Equations()])
    math, rest = re.fullmatch(r"<p>(<math .*</math>)(.*)</p>", page).groups()
    assert rest == " costs <code>$5 or $6</code>, and $7."
    assert (math.count("<mspace"), math.count('form="prefix"'), math.count("<msub>")) == (1, 1, 1)


@pytest.mark.parametrize("page", [page for page in PAGES if "$" in prose(f"docs/{page}")])
def test_every_equation_is_one(page):
    made = markdown.markdown(prose(f"docs/{page}"), extensions=[Equations(), "tables"])
    left = re.sub(r"<math .*?</math>|<code>.*?</code>", "", made, flags=re.S)
    assert "<math " in made
    assert "$" not in left


def test_links_out_of_the_folder_lead_to_the_sites_copies():
    class Page:
        class file:  # noqa: N801  mkdocs' name
            src_uri = "how-to/resume.md"

    text = "[a](../gpu.md) [b](../../SECURITY.md) [c](https://x.y) ![d](../../benchmarks/results/gpu.png#top)"
    moved = hooks.on_page_markdown(text, Page)
    assert moved == "[a](../gpu.md) [b](../repository/SECURITY.md) [c](https://x.y) ![d](../repository/benchmarks/results/gpu.png#top)"


# The reference


def test_every_command_has_its_place_with_all_options():
    page = commands_page()
    for path, text in helps():
        assert f"## `{path}`\n" in page
        assert text in page
        command = at(path)
        assert command.help, path
        assert [name for name in options(command) if name.startswith("--") and name not in text] == [], path


def at(path: str) -> click.Command:
    command: click.Command = group()
    for name in path.split()[1:]:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


@pytest.fixture(scope="module")
def offered() -> dict[str, dict[str, str]]:
    """Nouns, names, and what is said of each."""
    nouns = re.split(r"^## (.+)$", offers_page(), flags=re.M)[1:]
    return {noun: sections(text, "###") for noun, text in zip(nouns[::2], nouns[1::2], strict=True)}


def sections(text: str, mark: str) -> dict[str, str]:
    parts = re.split(rf"^{mark} (.+)$", text, flags=re.M)[1:]
    return dict(zip((title.strip("`") for title in parts[::2]), parts[1::2], strict=True))


@pytest.mark.parametrize("table", [Header, Train, *KINDS.values()], ids=lambda table: table.__name__)
def test_every_key_of_a_preset_has_its_row(table):
    titles = {kind: f"A stage with `{key}`".strip("`") for key, kind in KINDS.items()}
    text = sections(preset_page(), "##")[titles.get(table, "A preset" if table is Header else table.__name__)]
    assert [key.name for key in fields(table) if f"| `{key.name}` |" not in text and f"| `{key.name}`, " not in text] == []


@pytest.mark.parametrize("kind", OFFERS, ids=lambda kind: kind.__name__)
def test_every_offer_has_its_section_with_all_keys(kind, offered):
    own = offered[f"{OFFERS[kind][0].capitalize()}s"]
    for name, offer in Plugins().offered(kind).items():
        assert not offer.__doc__.startswith(f"{offer.__name__}("), f"{name} has no docstring of its own"
        assert [key.name for key in fields(offer) if key.init and f"| `{key.name}` |" not in own[name]] == [], name


# Code


@pytest.mark.parametrize("page", TEXTS)
def test_commands_that_are_shown_exist(page):
    for line in "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        if shown := SHOWN.match(line):
            check_command(shlex.split(shown[1].split("|")[0], comments=True), line)


def check_command(words: list[str], line: str) -> None:
    """Each word that looks like an option is one, of the command that is named."""
    command: click.Command = group()
    known = options(command)
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in known, line
        elif isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
            known |= options(command)
        elif isinstance(command, click.Group) and command.name == "zkit":
            pytest.fail(f"no such command: {line}")


def options(command: click.Command) -> set[str]:
    return {"--help", "-h", *(name for each in command.params for name in (*each.opts, *each.secondary_opts) if name.startswith("-"))}


TABLES = [pytest.param(page, text, id=f"{page}-{number}") for page in OURS for number, text in enumerate(blocks(f"docs/{page}", "toml"))]


@pytest.mark.parametrize(("page", "text"), TABLES)
def test_tables_of_presets_resolve(page, text):
    read = tomllib.loads(text)
    if not {"name", "model", "stages"} & set(read):
        return  # one key, shown for its comment
    table: dict[str, Any] = {"name": "docs", "model": {"use": "mistral", "weights": "w"}, **read}
    data = [{"use": "jsonl", "path": "p"}]
    stages = table.get("stages", {"sft": {}})
    for name, stage in stages.items():
        rest = {"data": data, **REST[name]} if name in REST else {}
        own = stage.get("train", {})
        train = own if "epochs" in own or not rest else {**TRAIN, **own}
        stages[name] = {**rest, **stage, **({"train": train} if train else {})}
    table["stages"] = stages
    assert resolve(table, Plugins().offers, file=page).stages


@pytest.mark.parametrize("page", TEXTS)
def test_python_is_python(page):
    for text in blocks(page, "python"):
        ast.parse(text)


@pytest.mark.parametrize("page", [page for page in OURS if page != "tutorial.md" and blocks(f"docs/{page}", "python")])
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for text in blocks(f"docs/{page}", "python"):
        exec(compile(text, page, "exec", dont_inherit=True), names)


def test_rows_are_held_out_as_shown(tmp_path):
    names: dict[str, Any] = {}
    exec(compile(blocks("docs/how-to/own-data.md", "python")[0], "own-data.md", "exec", dont_inherit=True), names)
    rows = [f'{{"prompt": "{n}\u2028"}}' for n in range(100)]
    (tmp_path / "all.jsonl").write_text("\n".join(rows), "utf-8")
    names["hold_out"](tmp_path / "all.jsonl", share=0.1)
    held, kept = ((tmp_path / f"{name}.jsonl").read_text("utf-8").split("\n")[:-1] for name in ("held-out", "train"))
    assert (len(held), sorted(held + kept)) == (10, sorted(rows))

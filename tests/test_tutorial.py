"""The tutorial, followed: each block in turn, in an empty folder, with the output that the page promises."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
from forked import zkit

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
BLOCK = re.compile(r"^```(sh|python|toml)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.S | re.M)
BLOCKS = [match.groups() for match in BLOCK.finditer(TEXT)]
MINUTES = "zkit run quickstart"
"""What takes too long for a test; the miniature stands in its place."""
INSTALL = "pip install -e 'zkit-hinge[test]'"
ELSEWHERE = ("make install", "pip install", "python -m pytest", "source ", "zkit chat")
"""CI installs, and tests projects of every kind; the chat waits for somebody, and has a test of its own."""
EARNEST = "zkit run zkit-hinge/hinge.toml"
"""Takes two minutes; its miniature is run."""


def fits(promised: str, printed: str) -> bool:
    """Whether an output is the promised one; `…` stands for anything, alone in a line for any lines."""
    pattern = "".join(r"(?:.*\n)*?" if line.strip() == "…" else loosely(line) + r" *\n" for line in promised.splitlines())
    return re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.splitlines()) + "\n") is not None


def loosely(line: str) -> str:
    return r"\s*" + ".*?".join(r"\s+".join(map(re.escape, part.split())) for part in line.split("…"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tutorial_works_as_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "zkit-hinge")
    assert sum(language == "sh" for language, *_ in BLOCKS) >= 12
    for language, code, promised in BLOCKS:
        if language == "python" and "hookimpl" in code:
            assert code == Path("zkit-hinge/zkit_hinge.py").read_text("utf-8")
        elif language == "python":
            exec(code, {})
        elif language == "toml":
            Path("my/greet.toml").write_text(code, "utf-8")
        else:
            follow(code, promised)


def install(project: Path) -> None:
    """As far as plugins are found: whoever has the folder on the path has its entry points."""
    about = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    facts = project / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    points = "".join(f"{name} = {place}\n" for name, place in about["entry-points"]["zephyr_kit"].items())
    (facts / "entry_points.txt").write_text(f"[zephyr_kit]\n{points}")


def follow(code: str, promised: str | None) -> None:
    for line in filter(None, code.splitlines()):
        if line == MINUTES:
            shutil.copytree("runs/quickstart-smoke", "runs/quickstart")
        elif line == INSTALL:
            install(Path("zkit-hinge"))
        elif line != EARNEST and not line.startswith(ELSEWHERE):
            words = shlex.split(line)
            assert words[0] == "zkit"
            done = zkit(*words[1:])
            printed = done.stdout + (done.stderr if done.returncode else "")
            assert promised is None or fits(promised, printed), f"{line}\n{printed}\n{done.stderr}"


@pytest.mark.parametrize(
    ("promised", "fitting"),
    [("a … c\n…\nz\n", True), ("…\nz\n", True), ("a b… c\nq\nz\n", True), ("a b c\nq\nz\n", False), ("a … c\n", False), ("…\nq\n", False)],
)
def test_outputs_are_compared(promised, fitting):
    assert fits(promised, "a   b2 c\nq\nz\n") is fitting

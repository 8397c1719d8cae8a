"""What the README shows works as shown."""

import re
import tomllib
from pathlib import Path

import pytest

from zephyr_kit.plugins import Plugins
from zephyr_kit.preset import resolve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
HINGE = (ROOT / "examples/zkit-hinge/zkit_hinge.py").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


TRAIN = {"epochs": 1, "examples_per_step": 8, "learning_rate": 1e-5}
REST = {"sft": {"objective": "sft", "train": TRAIN}, "dpo": {"objective": "dpo", "train": TRAIN}}
"""What the stages need besides what a block shows."""


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.split("\n")[0])
def test_the_preset_tables_resolve(block):
    table = {"name": "readme", "model": {"use": "mistral", "weights": "w"}, **tomllib.loads(block)}
    stages = table.get("stages", {"sft": {"data": [{"use": "jsonl", "path": "p"}]}})
    table["stages"] = {name: {**REST.get(name, {}), **stage} for name, stage in stages.items()}
    assert resolve(table, Plugins().offers, file="README.md").stages


@pytest.mark.parametrize("line", [line.strip() for line in "".join(blocks("python")).splitlines() if line.strip()])
def test_the_objective_is_the_example(line):
    tests = (ROOT / "examples/zkit-hinge/tests/test_zkit_hinge.py").read_text("utf-8")
    assert line in HINGE + tests or line.replace("def zkit_objectives():", "def zkit_objectives()") in HINGE


def test_files_that_are_named_exist():
    for path in re.findall(r"\b(?:presets|examples|docs)/[\w./-]+", README):
        assert (ROOT / path.rstrip(".")).exists(), path


def test_every_preset_is_in_the_table():
    for file in (ROOT / "presets").glob("*.toml"):
        assert f"`presets/{file.name}`" in README

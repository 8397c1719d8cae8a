"""Every objective, named in a preset, trains: one run with a stage for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import write_model

from zephyr_kit import cli
from zephyr_kit.plugins import Plugins
from zephyr_kit.protocols import Objective

NAMES = sorted(Plugins().offered(Objective))
PAIR_METRICS = {f"{kind}/{side}" for kind in ("reward", "logp") for side in ("chosen", "rejected")} | {"reward/margin", "reward/accuracy"}
OTHER_DATA = {
    "sft": '{ use = "jsonl", path = "demonstrations.jsonl" }',
    "dft": '{ use = "jsonl", path = "demonstrations.jsonl" }',
    "kto": '{ use = "jsonl", path = "labelled.jsonl", format = "labelled" }',
    "listwise_dpo": '{ use = "ultrafeedback", path = "rated.jsonl", binarise = { rule = "ranked" } }',
}
LOOKING = ("kto", "listwise_dpo", "sum")
"""Those that also look at held-out data."""
KEYS = {
    "sum": ', of = [{ use = "dpo", beta = 0.2 }, { use = "sft", weight = 0.2 }]',
    "listwise_dpo": ", completions = 3",
}


def stage(name: str) -> str:
    data = OTHER_DATA.get(name, '{ use = "jsonl", path = "pairs.jsonl" }')
    return f"""
[stages.{name}]
objective = {{ use = "{name}"{KEYS.get(name, "")} }}
data = [{data}]
{f"held_out = [{data}]" if name in LOOKING else ""}
max_length = 100
train = {{ steps = 2, examples_per_step = 4, tokens_per_batch = 200, learning_rate = 1e-3 }}
"""


def write_data(folder: Path) -> None:
    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    ask = [f"What is {number}?" for number in range(6)]
    write("demonstrations", [{"prompt": it, "completion": it[8:]} for it in ask])
    write("pairs", [{"prompt": it, "chosen": it[8:], "rejected": "No."} for it in ask])
    write("labelled", [{"prompt": it, "completion": "No." if i % 2 else it[8:], "label": not i % 2} for i, it in enumerate(ask)])
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    replies = [("It is.", 5), ("Who knows?", 3), ("No.", 1)]
    marks = [{"annotations": {aspect: {"Rating": str(mark)} for aspect in aspects}, "overall_score": mark} for _, mark in replies]
    rated = [{"response": text, **mark} for (text, _), mark in zip(replies, marks, strict=True)]
    write("rated", [{"instruction": it, "completions": rated} for it in ask])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    write_data(folder)
    weights = write_model(folder / "model", num_hidden_layers=1)
    keys = {"use": "mistral", "weights": str(weights), "template": "zephyr", "attention": "segments"}
    model = "".join(f"{name} = {json.dumps(value)}\n" for name, value in keys.items())
    (folder / "all.toml").write_text(f'name = "all"\n[model]\n{model}' + "".join(map(stage, NAMES)), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ZKIT_CACHE", str(folder / "cache"))
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", "all.toml", "--output", "run", "--device", "cpu"])
    assert ended.value.code == 0
    return folder / "run"


@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name: str, run: Path) -> None:
    lines = [json.loads(line) for line in (run / name / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert any("held_out/loss" in line for line in lines) == (name in LOOKING)
    assert list((run / name / "model").glob("*.safetensors"))
    assert name in ("sft", "dft") or steps[0].keys() >= PAIR_METRICS

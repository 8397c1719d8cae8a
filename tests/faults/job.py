"""A small job of two stages, and what must be the same of it whatever happened on the way."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 12
WORDS = ("sun", "moon", "star", "tree", "river", "stone", "bird", "fish")
SFT = """
name = "faults"
seed = 3

[model]
use = "mistral"
weights = "{folder}/model"
dtype = "float32"
template = "zephyr"
{model}

[stages.sft]
objective = "sft"
data = [{{ use = "jsonl", path = "{folder}/chat.jsonl" }}]
held_out = [{{ use = "jsonl", path = "{folder}/chat.jsonl", limit = 4 }}]
max_length = 160

[stages.sft.train]
steps = {steps}
examples_per_step = 4
learning_rate = 1e-2
warmup = 0.2
tokens_per_batch = 256
checkpoint_every = {every}
held_out_every = {looks}
"""
DPO = """
[stages.dpo]
objective = {{ use = "{objective}", beta = 0.1 }}
data = [{{ use = "jsonl", path = "{folder}/pairs.jsonl" }}]
max_length = 160
model.lora = {{ rank = 2, dropout = 0.1 }}
{stage}

[stages.dpo.train]
steps = {steps}
examples_per_step = 4
learning_rate = 1e-2
tokens_per_batch = 256
checkpoint_every = {every}
"""
LORA = "lora = { rank = 4, alpha = 8, dropout = 0.1 }"
SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
FREE = {"memory", "tokens_per_second", "wait_share", "wait_seconds"}
"""What may differ between runs: how long it took."""


@dataclass(frozen=True)
class Job:
    """A preset with its model and its data beside it."""

    folder: Path
    stages: tuple[str, ...] = ("sft", "dpo")
    steps: int = STEPS

    @property
    def preset(self) -> Path:
        return self.folder / "preset.toml"

    def result(self, run: Path) -> dict[str, Any]:
        """All that must be the same: models, last checkpoints, metrics, what the stages left behind."""
        found: dict[str, Any] = {}
        for stage in self.stages:
            for path in sorted((run / stage / "model").iterdir()):
                found[f"{stage}/model/{path.name}"] = path.read_bytes()
            last = run / stage / "checkpoints" / f"step-{self.steps:08d}"
            for path in sorted(last.iterdir()):
                found[f"{stage}/{path.name}"] = path.read_bytes()
            found[f"{stage}/metrics"] = metrics(run / stage)
            found[f"{stage}/done"] = json.loads((run / stage / "done.json").read_text())
        return found


def write_job(
    folder: Path,
    *,
    model: str = LORA,
    stage: str = "",
    objective: str = "dpo",
    steps: int = STEPS,
    every: int = 1,
    looks: int = 5,
    alone: bool = False,
    shape: Mapping[str, int] | None = None,
) -> Job:
    """Write the job; `alone` leaves the second stage out."""
    from tiny import write_model

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        write_model(folder / "model", **{**SHAPE, **(shape or {})})
    write_rows(folder)
    text = SFT if alone else SFT + DPO
    text = text.format(folder=folder, model=model, stage=stage, objective=objective, steps=steps, every=every, looks=looks)
    (folder / "preset.toml").write_text(text)
    return Job(folder, ("sft",) if alone else ("sft", "dpo"), steps)


def write_rows(folder: Path, count: int = 30) -> None:
    draw = random.Random(0)

    def say(length: int) -> str:
        return " ".join(draw.choices(WORDS, k=length))

    chat = [{"messages": [{"role": "user", "content": say(4)}, {"role": "assistant", "content": say(6)}]} for _ in range(count)]
    pairs = [{"prompt": say(4), "chosen": say(5), "rejected": say(7)} for _ in range(count)]
    for name, rows in (("chat", chat), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(stage: Path) -> list[Mapping[str, Any]]:
    """The whole lines of a stage's metrics, without times."""
    path = stage / "metrics.jsonl"
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in FREE} for line in whole]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def full() -> bool:
    """Whether the full counts are wanted."""
    return os.environ.get("ZKIT_FAULTS") == "full"


def times(few: int, many: int) -> int:
    """How often: few times in the ordinary test run, many by `make faults`."""
    return many if full() else few

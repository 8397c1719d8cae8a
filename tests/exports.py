"""Runs without their training: folders as `zkit run` leaves them, with models that were moved a little."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch
from policies import load, shake
from tiny import write_model
from zkit_mistral.backend import Lora, Quantize

from zephyr_kit.protocols import Start

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
KINDS = ("full", "lora", "qlora", "stacked")
LORA = Lora(rank=4, alpha=8)
TALKS = [(f"What is {n}?", f"It is {n * n}, I say.") for n in range(3)]
ROWS = [{"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]} for asked, said in TALKS]


def write_weights(folder: Path, dtype: torch.dtype = torch.float32, architecture: str = "Mistral") -> Path:
    return write_model(folder, architecture, dtype=dtype, **WIDE)


def write_run(folder: Path, kind: str, weights: Path, *, template: str = "zephyr") -> Path:
    """A run of one stage, or of two with an adapter each."""
    dtype = "bfloat16" if kind == "qlora" else "float32"
    options: dict[str, Any] = {"dtype": dtype, "template": template}
    if kind != "full":
        options["lora"] = LORA
    if kind == "qlora":
        options["quantize"] = Quantize()
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    stage = {"objective": "sft", "data": [{"use": "jsonl", "path": str(folder / "rows.jsonl")}], "max_length": 128}
    stage["train"] = {"steps": 1, "examples_per_step": 1, "learning_rate": 1e-3}
    stages: dict[str, Any] = {"sft": stage}
    policy = load(weights, **options)
    shake(policy)
    policy.save(folder / "sft" / "model")
    if kind == "stacked":
        stages["dpo"] = {**stage, "model": {"lora": {"rank": 2, "alpha": 2}}}
        policy = load(weights, Start(folder / "sft" / "model", frozenset({"lora"})), **{**options, "lora": Lora(rank=2, alpha=2)})
        shake(policy, seed=7)
        policy.save(folder / "dpo" / "model")
    model: dict[str, Any] = {"use": "mistral", "weights": str(weights), "dtype": dtype, "template": template}
    model |= {"lora": {"rank": 4, "alpha": 8}} if kind != "full" else {}
    model |= {"quantize": {"bits": 4}} if kind == "qlora" else {}
    (folder / "preset.toml").write_text(tomli_w.dumps({"name": "tiny", "model": model, "stages": stages}), "utf-8")
    return folder


@dataclass(frozen=True)
class Silent:
    """A narrator that remembers."""

    said: list[str]

    def say(self, text: str) -> None:
        self.said.append(text)

    def track(self, label: str, total: int | None = None) -> Any:
        from contextlib import nullcontext

        return nullcontext(lambda done: None)

"""Folders of runs, as `zkit run` writes them, in no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zephyr_kit.records import digest

PRESET = """
name = "made"
description = "a run <b>made</b> for tests"
[model]
use = "mistral"
weights = "base-model"
[stages.sft]
objective = "sft"
[stages.feedback]
completers = []
[stages.dpo]
objective = "dpo"
[stages.evaluate]
suites = []
"""
SETTINGS = {
    "name": "made",
    "model.weights": "base-model",
    "model.lora.rank": 8,
    "stages.sft.objective.use": "sft",
    "stages.sft.data[0].use": "jsonl",
    "stages.sft.data[0].path": "chat.jsonl",
    "stages.sft.train.epochs": 2,
    "stages.dpo.objective.use": "dpo",
    "stages.dpo.objective.beta": 0.1,
    "stages.dpo.data[0].use": "stage",
    "stages.dpo.data[0].name": "feedback",
    "stages.dpo.held_out[0].use": "stage",
    "stages.dpo.train.epochs": 1,
    "stages.dpo.train.held_out_every": 10,
}
LEDGER = {
    "read": 100, "added": 0, "kept": 90, "cut": 0, "dropped": 6, "bad": 4, "removed": 0, "tokens": 9000, "trained": 4000,
    "reasons": {"too long": 6, "no reply": 4}, "bad_reasons": {"no reply": 4}, "left_out": {}, "notes": {}, "first_bad": [],
    "portions": [{"source": 'jsonl: path = "chat.jsonl"', "sieve": None}],
}
GATHERED = {
    "rows": {"read": 10, "taken": 9, "repeated": 1, "removed": 0, "bad": 0, "reasons": {"seen before": 1}, "portions": []},
    "prompts": 9, "paired": 8, "unpaired": 1, "pairs": 8, "replies": 36, "fates": {"judged": 34, "unfinished": 2}, "cost": 1.25,
    "unpaired_reasons": {"all equal": 1}, "failures": {}, "left_out": {}, "requests": {"questions": 45, "known": 0, "failed": 0},
}
AGREEMENT = [{"judges": "one, and other", "cases": 9, "pairs": 20, "same_order": 0.9, "ties": 0.1, "same_best": None}]
BARS = [{"label": label, "count": 50, "share": 1.0} for label in ("0–19", "20–39")]
LENGTHS = [{"name": name, "mean": 15.0, "quantiles": [3, 14, 28, 30], "bars": BARS} for name in ("prompt", "whole")]
EVALUATION: dict[str, Any] = {
    "title": "Wishes",
    "columns": {"wins": "share of wins", "loss": "surprise"},
    "rows": {"sft": {"wins": None, "loss": 2.5}, "dpo": {"wins": 0.75, "loss": 2.25}},
    "samples": [{"prompt": "Tell a story.", "sft": "Once.", "dpo": "Once upon a time."}],
    "intervals": {"dpo": {"wins": [0.625, 0.875]}},
}
KEY = {"settings": {"beta": 0.1}}
SESSION = {"command": ["run", "made"], "ranks": 2, "device": "cpu", "packages": {"torch": "2"}, "key": digest(KEY)}
DONE = {"began": "2026-01-01T00:00:00+00:00", "seconds": 60.0, "memory": 2**30, "outcome": "done", "exit": 0}


def write_run(folder: Path, *, num_steps: int = 20, beta: float = 0.1, **evaluation: Any) -> Path:
    """A finished run of four stages."""
    settings = {**SETTINGS, "stages.dpo.objective.beta": beta}
    folder.mkdir(parents=True)
    (folder / "preset.toml").write_text(PRESET)
    origins = {"name": "made.toml"}
    put(folder / "settings.json", [{"path": p, "value": v, "origin": origins.get(p, "default of zephyr_kit")} for p, v in settings.items()])
    rates = {"flops_per_token": 1e6, "reference_flops_per_token": 2e5}
    put(folder / "run.json", [{"stage": name, **SESSION, **rates, **DONE} for name in ("sft", "feedback", "dpo", "evaluate")])
    for stage in ("sft", "dpo"):
        put(folder / stage / "data.json", LEDGER)
        put(folder / stage / "data.lengths.json", LENGTHS)
        put(folder / stage / "done.json", {"steps": num_steps, "loss": 0.5, "files": {}})
        write_steps(folder / stage / "metrics.jsonl", num_steps, pairs=stage == "dpo")
    put(folder / "feedback" / "data.json", GATHERED)
    put(folder / "feedback" / "agreement.json", AGREEMENT)
    put(folder / "feedback" / "done.json", {"prompts": 9, "replies": 36, "pairs": 8, "cost": 1.25, "files": {}})
    put(folder / "evaluate" / "done.json", {"evaluations": [{**EVALUATION, **evaluation}], "files": {}})
    for name in ("sft", "feedback", "dpo", "evaluate"):
        put(folder / name / "key.json", KEY)
    return folder


def write_steps(path: Path, num_steps: int, *, pairs: bool = False, looks_every: int = 10) -> None:
    """Lines for steps whose figures can be told in advance: step n has a loss of 1 / n."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for step in range(1, num_steps + 1):
            figures = {"reward/margin": step / 10, "reward/chosen": step / 20, "reward/rejected": -step / 20} if pairs else {}
            figures |= {"gradient_norm": 1.0, "learning_rate": 1e-3}
            spent = {"num_tokens": 100 + step, "num_targets": 50, "tokens_per_second": 100.0, "memory": 2**20 * step}
            line = {"step": step, "epoch": step / num_steps, "loss": 1 / step, **figures, **spent}
            file.write(json.dumps(line) + "\n")
            if step % looks_every == 0:
                file.write(json.dumps({"step": step, "held_out/loss": 2 / step}) + "\n")


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")

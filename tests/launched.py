"""`zkit run` on several devices, in processes that can be looked at and struck."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked, Prepare, start
from safetensors.torch import load_file
from tiny import write_model

from zephyr_kit.engine import Trainer

PRESET = """
name = "tiny"
seed = 3

[model]
use = "mistral"
weights = "{folder}/model"
dtype = "float64"
template = "zephyr"

[stages.sft]
objective = "sft"
data = [{{ use = "jsonl", path = "{folder}/chat.jsonl" }}]
held_out = [{{ use = "jsonl", path = "{folder}/chat.jsonl", limit = 5 }}]
max_length = 160

[stages.sft.train]
steps = {num_steps}
examples_per_step = 4
learning_rate = 1e-2
checkpoint_every = 3
tokens_per_batch = 128
held_out_every = 6

[stages.dpo]
objective = {{ use = "dpo", beta = 0.1 }}
data = [{{ use = "jsonl", path = "{folder}/pairs.jsonl" }}]
max_length = 160
model.lora = {{ rank = 2 }}
train = {{ steps = 6, examples_per_step = 4, learning_rate = 1e-2, checkpoint_every = 2, tokens_per_batch = 128 }}
"""
STEPS = 12
FREE = {"memory", "tokens_per_second", "wait_share", "wait_seconds"}
"""What may differ between runs: how long it took."""


def slow(starts: int = 1) -> None:
    """So many starts leave time to strike."""
    taken = Trainer.step

    def step(self: Trainer, work: Any) -> Any:
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) < starts:
            time.sleep(0.3)
        return taken(self, work)

    Trainer.step = step


def write_preset(folder: Path, *, num_steps: int = STEPS) -> Path:
    """A preset of two stages, with its model and its data beside it."""
    write_model(folder / "model", dtype=torch.float64)
    words = ["sun", "moon", "star", "tree", "river", "stone", "bird", "fish"]

    def say(first: int, count: int) -> str:
        return " ".join(words[(first * 3 + number * number) % len(words)] for number in range(count))

    chat = [{"messages": [{"role": "user", "content": say(n, 4)}, {"role": "assistant", "content": say(n + 1, 6)}]} for n in range(30)]
    pairs = [{"prompt": say(n, 4), "chosen": say(n + 2, 5), "rejected": say(n + 3, 7)} for n in range(30)]
    for name, rows in (("chat", chat), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "preset.toml").write_text(PRESET.format(folder=folder, num_steps=num_steps))
    return folder / "preset.toml"


@contextmanager
def started(preset: Path, output: Path, *options: str, prepare: Prepare | None = None) -> Iterator[Forked]:
    """`zkit run`, with something done in every process before; all are forked."""
    environment = {**os.environ, "ZKIT_CACHE": str(output.parent / "cache"), "OMP_NUM_THREADS": "1"}
    arguments = ["run", str(preset), "--output", str(output), *options]
    process = start(arguments, output.with_name("log"), prepare=prepare, environment=environment, ranks=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()


def run(preset: Path, output: Path, *options: str, code: int = 0, prepare: Prepare | None = None) -> str:
    with started(preset, output, *options, prepare=prepare) as process:
        said, _ = process.communicate(timeout=200)
    assert process.returncode == code, said
    return said


def run_anew(preset: Path, output: Path, *options: str) -> str:
    """The very command, whose ranks are new processes as well."""
    environment = {**os.environ, "ZKIT_CACHE": str(output.parent / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "zephyr_kit", "run", str(preset), "--output", str(output), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=250, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def figures(output: Path, stage: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in FREE} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    for stage in ("sft", "dpo"):
        for mine, its in zip(figures(one, stage), figures(other, stage), strict=True):
            assert mine == pytest.approx(its, rel=1e-9), stage
    assert_same_weights(one, other)


def assert_same_weights(one: Path, other: Path) -> None:
    for stage, name in (("sft", "model.safetensors"), ("dpo", "adapter_model.safetensors")):
        weights, expected = (load_file(folder / stage / "model" / name) for folder in (one, other))
        assert weights.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-9)


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def pid_of(output: Path, rank: int) -> int | None:
    """The process of a rank, once it beats."""
    signs = output / "logs" / "signs"
    pid = signs / f"{rank}.pid"
    return int(pid.read_text() or 0) if pid.exists() and (signs / f"{rank}.beat").exists() else None


def steps(output: Path, stage: str = "sft") -> int:
    """How many are written down."""
    path = output / stage / "metrics.jsonl"
    return json.loads(path.read_text().split("\n")[-2])["step"] if path.exists() and path.stat().st_size else 0

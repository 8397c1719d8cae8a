"""N1, N2, N3, N5 and memory: what is not finite changes nothing, and schedule is not mathematics."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import ListCorpus, TablePolicy, random_trees
from zkit_optimizers.adamw import AdamW
from zkit_preference.dpo import Dpo
from zkit_preference.ipo import Ipo
from zkit_sft.objective import Sft

from zephyr_kit.checkpoint import read
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed
from zephyr_kit.world import World

from .golden import FOLDER, OBJECTIVES, PORTABLE, STEPS
from .hits import LittleMemory, Poison
from .job import full, metrics, times, write_job
from .runner import finish

pytestmark = pytest.mark.timeout(7200)


def test_n1_a_step_that_is_no_number_is_skipped(tmp_path, tell):
    """The rows are named, NaN is printed, and all that is kept is finite."""
    job, count, draw, good = write_job(tmp_path / "job", alone=True), times(2, 50), random.Random(1), 0
    for number in range(count):
        output, step = tmp_path / f"run-{number}", draw.randrange(1, job.steps)
        value, what = draw.choice([math.nan, math.inf, -math.inf]), draw.choice(["loss", "gradient"])
        # A cache of its own: the same rows in another file, tokenised before, would go by that file's name.
        said = finish(job, output, prepare=Poison((step,), value, what), cache=tmp_path / "cache")
        (line,) = [line for line in metrics(output / "sft") if line.get("skipped")]
        shown = line["loss"] if what == "loss" else line["gradient_norm"]
        states = [read(place) for place in sorted(output.glob("sft/checkpoints/step-*"))]
        finite = all(torch.isfinite(tensor).all() for state in states for tensor in state.tensors.values())
        named = len(line["rows"]) == 4 and all(row.startswith(f"{job.folder}/chat.jsonl:") for row in line["rows"])
        told = f"sft step {step + 1} changes no weight: " in said and line["rows"][0] in said
        good += line["step"] == step + 1 and shown in ("NaN", "Infinity", "-Infinity") and finite and named and told
    tell("N1", good, count, "skipped, rows named, nothing kept that is not finite")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_n1_three_in_a_row_go_back_and_stop(job, straight, tmp_path, tell, what):
    said = finish(job, tmp_path / "run", code=5, prepare=Poison((5, 6, 7), math.nan, what))
    assert "step 8: 3 steps one after another had no finite loss or gradient" in said
    assert "Traceback" not in said
    again = finish(job, tmp_path / "run")
    assert "going on after step 5; 3 that came after are taken again" in again
    tell("N1", int(job.result(tmp_path / "run") == straight.result), 1, f"three in a row, {what}: exit 5, back to the checkpoint before")


def test_n2_what_cannot_learn_is_refused(tmp_path, tell):
    full_weights = write_job(tmp_path / "full", model="", alone=True)
    said = finish(full_weights, tmp_path / "still", "--set", "stages.sft.train.learning_rate=1e-30", code=1)
    still = "after 10 steps no trained weight has changed" in said
    mute = write_job(tmp_path / "job", alone=True)
    (mute.folder / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "sun"}]}\n' * 8)
    said = finish(mute, tmp_path / "mute", code=1)
    tell("N2", int(still) + int("no assistant turn to learn from" in said), 2)


@pytest.mark.parametrize("objective", [Sft(), Dpo(), Ipo()], ids=lambda each: type(each).__name__)
def test_n3_batches_are_schedule(objective, tell):
    """One batch of all, a few, or one for each example: loss and gradient in float32."""
    found = []
    for capacity in (10_000, 40, 1):
        policy = TablePolicy(vocabulary=64)
        adamw = lambda parameters: AdamW().build(parameters, learning_rate=1e-2)  # noqa: E731
        trainer = Trainer(policy, objective, optimizer=adamw, learning_rate=lambda _: 1e-2, seed=0)
        corpus = ListCorpus(random_trees(8, completions=objective.completions, vocabulary=64, longest=30))
        work = Feed(corpus, objective, capacity, True, torch.device("cpu"), World()).step(range(8))
        loss = trainer._gradients(work, trainer.objective)[0]["loss"] / work.num_units
        found.append((len(work.works), loss, policy.module.logits_VV.grad))
    (one, loss, gradient), *others = found
    assert (one, others[-1][0]) == (1, 8)
    same = partial(torch.allclose, rtol=1e-6, atol=1e-6)
    close = [same(each, whole) for _, *both in others for each, whole in zip(both, (loss, gradient), strict=True)]
    tell("N3", sum(close), len(close))


def test_n5_a_hundred_losses_are_those_of_the_files(tmp_path, tell):
    """In torch's portable kernels, one thread: the same on every machine; `python -m tests.faults.golden` writes them anew."""
    count = times(30, STEPS)
    command = [sys.executable, "-m", "tests.faults.golden", str(tmp_path), str(count)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, **PORTABLE, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found, kept = ([(folder / f"{name}.txt").read_text().splitlines() for name in OBJECTIVES] for folder in (tmp_path, FOLDER))
    same = [one == other[:count] for one, other in zip(found, kept, strict=True)]
    assert all(len(other) == STEPS for other in kept)
    tell("N5", sum(same), len(OBJECTIVES))


def test_a_lack_of_memory_makes_batches_smaller_and_nothing_else(tmp_path, tell):
    job = write_job(tmp_path / "job", model="lora = { rank = 4, alpha = 8 }", alone=True)
    finish(job, tmp_path / "straight")
    said = finish(job, tmp_path / "run", prepare=LittleMemory(140))
    assert "stages.sft, step 1: out of memory (CUDA out of memory" in said
    assert "in batches of up to 128 tokens from here on" in said
    losses = [[line["loss"] for line in metrics(tmp_path / name / "sft") if "loss" in line] for name in ("run", "straight")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    said = finish(job, tmp_path / "none", prepare=LittleMemory(20), code=1)
    assert "not even one example of" in said
    tell("memory", 2, 2, "smaller batches; told when one example is too much")


def test_the_full_counts_are_known():
    assert times(1, 2) == (2 if full() else 1)

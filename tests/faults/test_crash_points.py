"""K3, K9, K6: from every state that a crash can leave, and from every checkpoint, the same bits."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from .job import LORA, times, write_job
from .runner import finish
from .witness import COMMITTED, Witness

pytestmark = pytest.mark.timeout(14_400)


def states(job, place: Path, *, power: bool) -> list[Path]:
    """All that differ, of a run with its cache."""
    roots = (place / "run", place / "cache")
    (place / "states").mkdir(parents=True)
    finish(job, roots[0], prepare=Witness(roots, place / "states", power), cache=roots[1])
    return sorted((place / "states").glob("[0-9]*"))


def go_on_from(job, state: Path, place: Path, expected) -> tuple[bool, str]:
    """As the command does that is given again after the crash."""
    for name in ("run", "cache"):
        shutil.rmtree(place / name, ignore_errors=True)
        shutil.copytree(state / name, place / name)
    said = finish(job, place / "run", cache=place / "cache")
    return job.result(place / "run") == expected, said


@pytest.mark.parametrize("power", [False, True], ids=["K3", "K9"])
def test_every_state_that_can_be_left(tmp_path, tell, power):
    """K3: of a process that dies before or after any call that changes files. K9: of a machine that loses power."""
    job = write_job(tmp_path / "job", steps=times(2, 3))
    found = states(job, tmp_path / "first", power=power)
    finish(job, tmp_path / "straight", cache=tmp_path / "straight-cache")
    expected = job.result(tmp_path / "straight")
    chosen = found if times(0, 1) else random.Random(9).sample(found, 3)
    same = 0
    for state in chosen:
        right, said = go_on_from(job, state, tmp_path / "again", expected)
        right = right and int((state / COMMITTED).read_text()) <= max(_saved(state), default=0)
        if not right:
            print(state, said)  # noqa: T201  shown where it fails
        same += right
    tell("K9" if power else "K3", same, len(chosen), f"of {len(found)} states that differ")


def _saved(state: Path) -> list[int]:
    """Checkpoints that had been committed when this state was, over both stages: those that are there, or were before the last kept."""
    steps = [[int(place.name[5:]) for place in (state / "run" / stage / "checkpoints").glob("step-*")] for stage in ("sft", "dpo")]
    return [sum(max(each, default=0) for each in steps)]


SETTINGS = {
    "full weights": {"model": ""},
    "full weights, adamw_8bit": {"model": "", "set": ("stages.sft.train.optimizer=adamw_8bit", "stages.dpo.train.optimizer=adamw_8bit")},
    "full weights in bfloat16": {"model": "", "set": ("model.dtype=bfloat16",)},
    "lora with dropout": {},
    "lora without dropout": {"model": "lora = { rank = 4 }"},
    "dora, gone on with": {"model": "lora = { rank = 4, dora = true, dropout = 0.1 }", "stacked": False},
    "rank-stabilised lora": {"set": ("model.lora.rslora=true",)},
    "qlora, 4 bits": {"set": ("model.quantize={bits = 4}",)},
    "qlora, 8 bits": {"set": ("model.quantize={bits = 8}",)},
    "adapters in bfloat16": {"set": ("model.dtype=bfloat16",)},
    "adamw_8bit": {"set": ("stages.sft.train.optimizer=adamw_8bit",)},
    "weight decay": {"set": ('stages.dpo.train.optimizer={use = "adamw", weight_decay = 0.1}',)},
    "dpo, live reference": {"set": ("stages.dpo.reference=live",)},
    "dpo, smoothed": {"set": ("stages.dpo.objective.label_smoothing=0.1",)},
    "dpo without a reference": {"set": ("stages.dpo.objective.reference_free=true",)},
    "ipo": {"set": ('stages.dpo.objective={use = "ipo"}',)},
    "ipo, live reference": {"set": ('stages.dpo.objective={use = "ipo"}', "stages.dpo.reference=live")},
    "prompts repeated": {"set": ("stages.dpo.train.share_prompts=false",)},
    "one example a batch": {"set": ("stages.sft.train.tokens_per_batch=1", "stages.dpo.train.tokens_per_batch=1")},
    "a step in one batch": {"set": ("stages.sft.train.tokens_per_batch=4096", "stages.dpo.train.tokens_per_batch=4096")},
    "steps by tokens, uneven": {"tokens": True},
    "a fraction of the rows": {"set": ("stages.sft.data[0].fraction=0.7",)},
    "filtered rows": {"set": ('stages.sft.data[0].filters=[{use = "length", min_words = 2}]',)},
    "layers computed again": {"set": ("model.activation_checkpointing=block",)},
    "linear schedule": {"set": ("stages.sft.train.schedule=linear", "stages.sft.train.clip=0.1")},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_k6_from_every_checkpoint(tmp_path, tell, setting):
    """First, in the middle of three epochs, at their edges, and last."""
    if not times(0, 1) and setting != "lora with dropout":
        pytest.skip("make faults takes all settings")
    settings = SETTINGS[setting]
    steps, points = times(12, 23), times((3, 10), (1, 4, 8, 11, 15, 19, 22))
    job = write_job(tmp_path / "job", model=settings.get("model", LORA), steps=steps)
    text = job.preset.read_text()
    if settings.get("tokens"):
        text = text.replace("examples_per_step = 4", "tokens_per_step = 290")
    if not settings.get("stacked", True):
        text = text.replace("model.lora = { rank = 2, dropout = 0.1 }", "")
    job.preset.write_text(text)
    keep = [f"stages.{stage}.train.keep_checkpoints=100" for stage in job.stages]
    options = [part for change in (*keep, *settings.get("set", ())) for part in ("--set", change)]
    finish(job, tmp_path / "run", *options)
    expected, same = job.result(tmp_path / "run"), 0
    # Adapters name the folder that they stand on: each time, it goes on where it was begun.
    whole = (tmp_path / "run").rename(tmp_path / "whole")
    for point in points:
        for stage in job.stages:
            output = Path(shutil.copytree(whole, tmp_path / "run"))
            (output / stage / "done.json").unlink()
            shutil.rmtree(output / stage / "model")
            for place in (output / stage / "checkpoints").iterdir():
                if int(place.name[5:]) > point:
                    shutil.rmtree(place)
            said = finish(job, output, *options)
            assert f"going on after step {point}" in said
            same += job.result(output) == expected
            shutil.rmtree(output)
    tell("K6", same, len(points) * len(job.stages), setting)

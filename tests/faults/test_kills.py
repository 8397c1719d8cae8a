"""K: killed at any moment, the same command goes on to the same bits."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from .hits import PHASES, RESUMING, SAVE, Signal
from .job import Job, content, metrics, times, write_job
from .ledger import Noting, rows_trained
from .runner import finish, start, wait_for

pytestmark = pytest.mark.timeout(7200)


def test_k1_killed_at_any_moment(job, straight, tmp_path, tell):
    """From the start to the end, with an empty cache."""
    count, draw, same, tries = times(5, 200), random.Random(1), 0, 0
    killed, latest = 0, straight.seconds
    while killed < count:
        output, cache, tries = tmp_path / f"run-{tries}", tmp_path / f"cache-{tries}", tries + 1
        going = start(job, output, cache=cache)
        waited = draw.uniform(0, latest)
        time.sleep(waited)
        if not going.kill():  # it was over, sooner than on a busy machine
            latest = waited
            continue
        killed += 1
        finish(job, output, cache=cache)
        same += job.result(output) == straight.result
        shutil.rmtree(output)
        shutil.rmtree(cache)
        assert tries < 3 * count
    tell("K1", same, count)


def test_k2_killed_inside_saves(job, straight, tmp_path, tell):
    count, draw, same, in_staging = times(4, 200), random.Random(2), 0, 0
    for number in range(count):
        output = tmp_path / f"run-{number}"
        hit = Signal(SAVE, call=draw.randint(1, 2 * job.steps), after=draw.uniform(0.0002, 0.006))
        going = start(job, output, prepare=hit)
        assert going.end() == -9, going.said
        in_staging += any(output.glob("*/checkpoints/.step-*"))
        steps = {stage: len([1 for line in metrics(output / stage) if "loss" in line]) for stage in job.stages}
        said = finish(job, output)
        for stage in job.stages:
            if 2 < steps[stage] < job.steps:  # one checkpoint was being written, while the next step was taken
                assert any(f"going on after step {steps[stage] - lost}" in said for lost in (0, 1, 2)), said
        same += job.result(output) == straight.result
        shutil.rmtree(output)
    tell("K2", same, count, f"{in_staging} in staging")


@pytest.mark.parametrize("phase", [*PHASES, *RESUMING])
def test_k4_killed_in_a_phase(job, straight, tmp_path, tell, phase):
    """In what comes before and after training, and while going on from a checkpoint."""
    count, draw, same = times(1, 50), random.Random(phase), 0
    for number in range(count):
        output, cache = tmp_path / f"run-{number}", tmp_path / f"cache-{number}"
        if phase in RESUMING:
            start(job, output, prepare=Signal(SAVE, call=7), cache=cache).end()
        place = {**PHASES, **RESUMING}[phase]
        going = start(job, output, prepare=Signal(place, after=draw.choice([0, draw.uniform(0, 0.05)])), cache=cache)
        assert going.end() in (-9, 0), going.said
        finish(job, output, cache=cache)
        same += job.result(output) == straight.result
        shutil.rmtree(output)
        shutil.rmtree(cache)
    tell("K4", same, count, phase)


def test_k5_killed_again_and_again(tmp_path, tell):
    """One run, whose lives are three steps long."""
    kills, draw = times(4, 30), random.Random(5)
    job = write_job(tmp_path / "job", steps=times(16, 90), alone=True)
    finish(job, tmp_path / "straight")
    done = 0
    for _ in range(kills):
        going = start(job, tmp_path / "run")
        before = len(metrics(tmp_path / "run" / "sft"))
        target = before + 1 + int(draw.expovariate(1 / 3))
        wait_for(lambda at=target: len(metrics(tmp_path / "run" / "sft")) >= at, going)
        done += going.kill()
    assert done >= kills - 1
    finish(job, tmp_path / "run")
    same = job.result(tmp_path / "run") == job.result(tmp_path / "straight")
    tell("K5", done if same else 0, done, "kills in one run")


def test_k7_metrics_after_kills_are_those_without(tmp_path, tell):
    """Also where saves and looks fall on different steps; the figures at the end too."""
    job = write_job(tmp_path / "job", steps=times(30, 100), every=7, alone=True)
    finish(job, tmp_path / "straight")
    count, draw, done = times(3, 10), random.Random(7), 0
    for _ in range(count):
        going = start(job, tmp_path / "run")
        target = len(metrics(tmp_path / "run" / "sft")) + draw.randint(1, 9)
        wait_for(lambda at=target: len(metrics(tmp_path / "run" / "sft")) >= at, going)
        done += going.kill()
    finish(job, tmp_path / "run")
    found, expected = job.result(tmp_path / "run"), job.result(tmp_path / "straight")
    assert found["sft/metrics"] == expected["sft/metrics"]
    tell("K7", done if found == expected else 0, done, "kills, one stream of metrics")


def test_k8_a_finished_run_is_left_alone(job, straight, tell):
    count, quick = times(2, 10), 0
    before = content(straight.output)
    touched = {path: path.stat().st_mtime_ns for path in straight.output.rglob("*")}
    for _ in range(count):
        begun = time.monotonic()
        said = finish(job, straight.output, cache=straight.output.with_name("cache"))
        quick += time.monotonic() - begun < times(20, 5) and said.count("done before, nothing changed") == 2
    assert content(straight.output) == before
    assert {path: path.stat().st_mtime_ns for path in straight.output.rglob("*")} == touched
    tell("K8", quick, count, "nothing done, no file touched, under 5 s")


def test_k10_every_sample_is_seen_as_often_as_without_kills(tmp_path, tell):
    job = write_job(tmp_path / "job", steps=times(16, 60), every=3, alone=True)
    finish(job, tmp_path / "straight", prepare=Noting(tmp_path / "straight.ledger"))
    expected = rows_trained(tmp_path / "straight.ledger")
    assert list(expected) == list(range(job.steps))
    count, draw, done, whole = times(2, 50), random.Random(10), 0, True
    ledger = tmp_path / "run.ledger"
    while done < count:
        going = start(job, tmp_path / "run", prepare=Noting(ledger))
        time.sleep(draw.uniform(0.3, 2.5))
        done += going.kill()
        if (tmp_path / "run" / "sft" / "done.json").exists():
            whole = whole and rows_trained(ledger) == expected
            shutil.rmtree(tmp_path / "run")
            ledger.unlink()
    finish(job, tmp_path / "run", prepare=Noting(ledger))
    whole = whole and rows_trained(ledger) == expected
    tell("K10", done if whole else 0, done, "kills; each sample as often as it should be")


def test_k11_checkpoints_are_chosen_by_step_never_by_time(straight, tmp_path, tell):
    from zephyr_kit.checkpoint import Checkpoints

    draw, right, count = random.Random(11), 0, 40
    for number in range(count):
        place = Path(shutil.copytree(straight.output / "sft" / "checkpoints", tmp_path / f"copy-{number}"))
        for path in draw.sample(sorted(place.rglob("*")), 6):
            moved = time.time() + draw.uniform(-3600, 3600)
            os.utime(path, (moved, moved))
        found, remarks = Checkpoints(place).newest()
        right += found is not None and found.step == 12 and not remarks
    tell("K11", right, count)


def test_the_best_checkpoint_is_kept_besides_the_last(job, tmp_path):
    train = "stages.sft.train"
    keys = ("keep_best=gradient_norm", "keep_checkpoints=1")
    said = finish(job, tmp_path / "run", *(part for key in keys for part in ("--set", f"{train}.{key}")))
    norms = {line["step"]: line["gradient_norm"] for line in metrics(tmp_path / "run" / "sft") if "gradient_norm" in line}
    best = max(norms, key=lambda step: norms[step])
    assert best != job.steps, "else it would say little"
    kept = sorted(place.name for place in (tmp_path / "run" / "sft" / "checkpoints").iterdir())
    assert kept == [f"step-{best:08d}", f"step-{job.steps:08d}"]
    assert f"best by gradient_norm: step {best}" in said
    said = finish(job, tmp_path / "other", "--set", f"{train}.keep_best=heldout/loss", code=2)
    assert '`train.keep_best` = "heldout/loss": there is no such metric; did you mean `held_out/loss`?' in said
    said = finish(job, tmp_path / "other", "--set", "stages.dpo.train.keep_best=held_out/loss", code=2)
    assert "there is no `held_out` data to be measured on" in said


def test_what_may_change_is_told_when_it_does(job, tmp_path):
    start(job, tmp_path / "run", prepare=Signal(SAVE, call=7)).end()
    said = finish(job, tmp_path / "run", "--set", "stages.sft.train.tokens_per_batch=128")
    assert said.count("not as at its last start") == 1
    assert "not as at its last start, and allowed: tokens_per_batch: was 256, is 128" in said


def test_a_line_of_the_metrics_that_is_damaged_is_named_and_nothing_else_lost(job, straight, tmp_path):
    start(job, tmp_path / "run", prepare=Signal(SAVE, call=7)).end()
    log = tmp_path / "run" / "sft" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 3', '"step" 3', 1))
    said = finish(job, tmp_path / "run")
    assert f"{log}: 1 damaged line removed, no line of step 3; curves and reports lack that, the training lacks nothing" in said
    weights = [place for place in straight.result if place.endswith(".safetensors")]
    assert weights
    assert {place: job.result(tmp_path / "run")[place] for place in weights} == {place: straight.result[place] for place in weights}


def test_a_job_that_is_the_same_to_the_bit_would_show_a_difference(job, straight):
    """So that the equality above says something."""
    assert len(straight.result) > 15
    changed = json.loads(json.dumps({key: str(value) for key, value in straight.result.items()}))
    assert isinstance(job, Job)
    assert len(set(changed.values())) > 10

"""S1, S2: asked to stop, a run saves within its step and says so by its exit code."""

from __future__ import annotations

import random
import shutil
import signal
import time

import pytest

from .hits import PHASES, Both, Signal, Slow
from .job import full, metrics, times
from .runner import finish, start, wait_for

pytestmark = pytest.mark.timeout(7200)

STEP = "zephyr_kit.engine:Trainer.step"
EXITS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGUSR1: 138}


def newest(stage):
    return max((int(place.name[5:]) for place in stage.glob("checkpoints/step-*")), default=0)


def saved_all(job, output):
    """Whether no step that was reported is lost; the last one is where the run stood."""
    stages = [output / stage for stage in job.stages if (output / stage / "metrics.jsonl").exists()]
    return not stages or newest(stages[-1]) == max((line["step"] for line in metrics(stages[-1])), default=0)


def test_s1_sigterm_at_any_moment(job, straight, tmp_path, tell):
    count, draw, good, tries, slowest = times(4, 100), random.Random(11), 0, 0, 0.0
    asked, odd, latest = 0, "", straight.seconds
    while asked < count:
        output, cache, tries = tmp_path / f"run-{tries}", tmp_path / f"cache-{tries}", tries + 1
        going = start(job, output, cache=cache)
        waited = draw.uniform(0.05, latest)
        time.sleep(waited)
        sent = time.monotonic()
        going.send(signal.SIGTERM)
        code = going.end()
        took = time.monotonic() - sent
        assert tries < 3 * count
        if code == 0:  # it was over, sooner than on a busy machine
            latest = waited
        if code in (0, -signal.SIGTERM):  # or zkit did not listen yet
            continue
        asked += 1
        slowest = max(slowest, took)
        whole = code == 143 and took < times(60, 3) and saved_all(job, output)
        said = going.said
        # Seen now and then: a request that comes in the middle of a destructor is told by Python itself.
        whole = whole and not (full() and "Traceback" in said)
        finish(job, output, cache=cache)
        same = job.result(output) == straight.result
        good += whole and same
        odd = odd if whole and same else f"; one ended with {code} after {took:.2f} s, whole: {whole}, the same: {same}: {said[-1500:]}"
        shutil.rmtree(output)
        shutil.rmtree(cache)
    tell("S1", good, count, f"slowest {slowest:.2f} s{odd}")


@pytest.mark.parametrize("phase", PHASES)
def test_s2_sigterm_in_a_phase(job, straight, tmp_path, tell, phase):
    output, cache = tmp_path / "run", tmp_path / "cache"
    going = start(job, output, prepare=Signal(PHASES[phase], number=signal.SIGTERM), cache=cache)
    assert going.end() == 143, going.said
    assert "Traceback" not in going.said
    assert "the same command goes on" in going.said
    finish(job, output, cache=cache)
    tell("S2", int(job.result(output) == straight.result), 1, phase)


@pytest.mark.parametrize("number", EXITS, ids=lambda number: number.name)
def test_s2_signals_in_a_step_save_it(job, straight, tmp_path, tell, number):
    going = start(job, tmp_path / "run", prepare=Signal(STEP, number=number, call=8))
    assert going.end() == EXITS[number], going.said
    assert newest(tmp_path / "run" / "sft") == 6, "two steps are rehearsed before, and the one under way is saved"
    finish(job, tmp_path / "run")
    tell("S2", int(job.result(tmp_path / "run") == straight.result), 1, number.name)


@pytest.mark.parametrize(("number", "saved"), [(signal.SIGTERM, True), (signal.SIGINT, False)], ids=["SIGTERM", "SIGINT"])
def test_s2_a_second_signal(job, straight, tmp_path, tell, number, saved):
    """A second Ctrl-C leaves in the middle of the step; a scheduler that repeats itself does not."""
    hits = Both(Slow(STEP, 0.6), Signal(STEP, number=number, call=4, again=0.55))
    going = start(job, tmp_path / "run", prepare=hits)
    assert going.end() == EXITS[number], going.said
    assert ("left at once" in going.said) != saved
    assert ("Ctrl-C again leaves" if number == signal.SIGINT else "Ctrl-C leaves") in going.said
    finish(job, tmp_path / "run")
    tell("S2", int(job.result(tmp_path / "run") == straight.result), 1, f"{number.name} twice")


def test_s2_the_time_is_over(job, straight, tmp_path, tell):
    going = start(job, tmp_path / "run", "--max-time", "4s", prepare=Slow(STEP, 0.5))
    assert going.end() == 75, going.said
    assert "--max-time is over" in going.said
    assert saved_all(job, tmp_path / "run")
    finish(job, tmp_path / "run")
    tell("S2", int(job.result(tmp_path / "run") == straight.result), 1, "--max-time")


def test_what_was_ignored_stays_ignored(job, straight, tmp_path):
    """As under nohup."""
    going = start(job, tmp_path / "run", prepare=ignore_hangup)
    wait_for(lambda: len(metrics(tmp_path / "run" / "sft")) > 3, going)
    going.send(signal.SIGHUP)
    assert going.end() == 0, going.said
    assert job.result(tmp_path / "run") == straight.result


def ignore_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

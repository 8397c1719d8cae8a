"""Two ranks that are killed, frozen and asked to end, again and again; tests/test_launch.py does each of it once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
from forked import Forked
from launched import assert_same_run, pid_of, run, slow, started, steps, wait_until, write_preset

from .job import full

pytestmark = pytest.mark.skipif(not full(), reason="`make faults` does")
STEPS = 400
Tell = Callable[[str, int, int, str], None]


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_preset(tmp_path_factory.mktemp("preset"), num_steps=STEPS)


@pytest.fixture(scope="module")
def straight(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run that nothing happens to. Ranks that share weights sum in another order, and so many steps magnify what that rounds away."""

    @cache
    def ended(sharding: str) -> Path:
        output = tmp_path_factory.mktemp(sharding) / "run"
        run(preset, output, *sharded(sharding))
        return output

    return ended


def sharded(sharding: str) -> list[str]:
    return ["--devices", "2", "--set", f"stages.sft.train.sharding={sharding}"]


def strike(process: Forked, output: Path, draw: random.Random, number: int, best: int) -> tuple[float, int] | None:
    """Send a signal to one rank when it is some steps further than ever.

    Seconds until new processes are further than it was, and where that is; None if the run was over.
    """
    further = best + draw.randint(1, 6)
    wait_until(lambda: process.poll() is not None or steps(output) >= further, 120)
    if process.poll() is not None or steps(output) >= STEPS - 4:
        return None
    pids = [wait_until(lambda rank=rank: pid_of(output, rank), 60) for rank in (0, 1)]
    os.kill(draw.choice(pids), number)
    struck, at = time.monotonic(), steps(output)
    wait_until(lambda: process.poll() is not None or all(pid_of(output, rank) not in (None, old) for rank, old in enumerate(pids)), 90)
    wait_until(lambda: process.poll() is not None or steps(output) > at, 90)
    return time.monotonic() - struck, at


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("label", ["W3", "S7"])
@pytest.mark.parametrize("sharding", ["replicated", "sharded"])
def test_struck_in_one_run(preset, straight, tmp_path, tell: Tell, label: str, sharding: str) -> None:
    number, count, limit = {"W3": (signal.SIGKILL, 25, 30.0), "S7": (signal.SIGSTOP, 10, 60.0)}[label]
    draw, output, back, best = random.Random(label), tmp_path / "run", [], 0
    with started(preset, output, *sharded(sharding), prepare=partial(slow, 10_000)) as process:
        while len(back) < count and (found := strike(process, output, draw, number, best)) is not None:
            back.append(found[0])
            best = max(best, found[1])
        said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    assert_same_run(output, straight(sharding))
    tell(label, sum(seconds <= limit for seconds in back), len(back), f"{sharding}: back within {max(back):.0f} s at the longest")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("whom", ["one rank", "the launcher", "all"])
def test_asked_to_end(preset, straight, tmp_path, tell: Tell, whom: str) -> None:
    draw, output, saved, count = random.Random(whom), tmp_path / "run", 0, 20
    for _ in range(count):
        before = steps(output)
        with started(preset, output, "--devices", "2", prepare=partial(slow, 10_000)) as process:
            wait_until(lambda before=before: process.poll() is not None or steps(output) > before + 2, 120)
            pids = [wait_until(lambda rank=rank: pid_of(output, rank)) for rank in (0, 1)]
            asked = time.monotonic()
            for pid in {"one rank": [draw.choice(pids)], "the launcher": [process.pid], "all": [*pids, process.pid]}[whom]:
                os.kill(pid, signal.SIGTERM)
            process.communicate(timeout=60)
        newest = max((output / "sft" / "checkpoints").glob("step-*"))
        saved += process.returncode == 143 and time.monotonic() - asked < 10 and int(newest.name.partition("-")[2]) == steps(output)
    run(preset, output, "--devices", "2")
    assert_same_run(output, straight("replicated"))
    tell("S3", saved, count, "")


@pytest.mark.timeout(3600)
def test_one_run_on_ever_other_numbers_of_ranks(tmp_path, tell: Tell) -> None:
    # Few steps: what sums in another order round away grows with each.
    preset, output, straight = write_preset(tmp_path, num_steps=20), tmp_path / "run", tmp_path / "straight" / "run"
    run(preset, straight)
    for count in (4, 2, 3):
        before = steps(output)
        with started(preset, output, "--devices", str(count), prepare=partial(slow, 10_000)) as process:
            wait_until(lambda before=before: process.poll() is not None or steps(output) > before + 2, 120)
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
        assert process.returncode == 143, said
    run(preset, output, "--devices", "1")
    assert_same_run(output, straight)
    tell("W2", 3, 3, "4, then 2, 3 and 1 ranks")

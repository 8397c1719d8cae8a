"""`zkit run` on several devices: the run of one, whatever happens to a rank."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from pathlib import Path

import pytest
from faults.hits import LittleMemory
from forked import start
from launched import STEPS, assert_same_run, pid_of, run, run_anew, slow, started, steps, wait_until

from zephyr_kit import ZkitError, heartbeat
from zephyr_kit.checkpoint import Checkpoints
from zephyr_kit.engine import Trainer


@pytest.mark.parametrize("way", ["sharding=replicated", "sharding=sharded", "context_parallel=2"])
def test_two_devices_are_one(two_stages, alone, tmp_path, way):
    changes = [part for stage in ("sft", "dpo") for part in ("--set", f"stages.{stage}.train.{way}")]
    said = run(two_stages, tmp_path / "run", "--devices", "2", *changes)
    assert "2 of them" in said
    assert_same_run(tmp_path / "run", alone)
    lines = map(json.loads, (tmp_path / "run" / "sft" / "metrics.jsonl").read_text().splitlines())
    waits = [line.get("wait_seconds", ()) for line in lines if "loss" in line]
    told = ["waiting" in text for text in (said, (tmp_path / "run" / "report.md").read_text())]
    # Only where ranks meet but once for each step is it known what they wait.
    assert (list(map(len, waits)), told) == ([2] * STEPS, [True] * 2) if "replicated" in way else ([0] * STEPS, [False] * 2)
    log = next((tmp_path / "run" / "logs").glob("*/attempt_0/1/stdout.log")).read_text()
    assert "sft" in log
    again = run(two_stages, tmp_path / "run", "--devices", "2", *changes)
    assert "done before, nothing changed" in again


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_started_again(two_stages, alone, tmp_path, rank):
    output = tmp_path / "run"
    with started(two_stages, output, "--devices", "2", prepare=slow) as process:
        wait_until(lambda: steps(output) >= 4)
        os.kill(wait_until(lambda: pid_of(output, rank)), signal.SIGKILL)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert f"rank {rank} was ended by SIGKILL; all ranks start again from the last checkpoint" in said
    assert re.search(r"going on after step \d+", said)
    assert_same_run(output, alone)


@pytest.mark.parametrize("whom", ["launcher", "0", "1", "all"])
def test_asked_to_end_all_ranks_save_the_same_step(two_stages, alone, tmp_path, whom):
    output = tmp_path / "run"
    with started(two_stages, output, "--devices", "2", prepare=slow) as process:
        wait_until(lambda: steps(output) >= 4)
        pids = {str(rank): wait_until(lambda rank=rank: pid_of(output, rank)) for rank in (0, 1)} | {"launcher": process.pid}
        asked = steps(output)
        for pid in pids.values() if whom == "all" else [pids[whom]]:
            os.kill(pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    newest = max((output / "sft" / "checkpoints").glob("step-*"))
    assert int(newest.name.partition("-")[2]) == steps(output)
    assert asked <= steps(output) < STEPS, "at once"
    run(two_stages, output, "--devices", "1" if whom == "all" else "2")
    assert_same_run(output, alone)


def without_room() -> None:
    slow()

    def write(self, begun):
        if self.world.leads:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return begun.staging

    Checkpoints.write = write


def test_a_leader_that_cannot_save_when_all_are_asked_to_end_is_not_waited_for(two_stages, tmp_path):
    output = tmp_path / "run"
    no_save_before = ("--set", "stages.sft.train.checkpoint_every=1000")
    with started(two_stages, output, "--devices", "2", *no_save_before, prepare=without_room) as process:
        wait_until(lambda: steps(output) >= 2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert "disk full" in said
    assert "Traceback" not in said


def test_a_second_command_is_refused_and_does_the_first_no_harm(two_stages, alone, tmp_path):
    output = tmp_path / "run"
    with started(two_stages, output, "--devices", "2", prepare=slow) as process:
        wait_until(lambda: steps(output) >= 2)
        signs = wait_until(lambda: pid_of(output, 0)), pid_of(output, 1)
        second = start(["run", str(two_stages), "--output", str(output), "--devices", "2"], tmp_path / "second", ranks=True)
        assert second.wait(60) == 1
        assert "another zkit works in this folder" in second.said
        assert (pid_of(output, 0), pid_of(output, 1)) == signs
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "start again" not in said
    assert_same_run(output, alone)


def impatiently() -> None:
    from zkit_launchers import guard

    slow()
    heartbeat.SECONDS_BETWEEN_BEATS, guard.SECONDS_OF_SILENCE = 0.5, 6.0


def test_a_frozen_rank_is_found_its_stacks_kept_and_all_goes_on(two_stages, alone, tmp_path):
    output = tmp_path / "run"
    with started(two_stages, output, "--devices", "2", prepare=impatiently) as process:
        wait_until(lambda: steps(output) >= 4)
        os.kill(wait_until(lambda: pid_of(output, 1)), signal.SIGSTOP)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert re.search(r"rank 1 gave no sign of life for \d+ s; all ranks start again", said)
    # The other one was waiting for it, in whatever ranks do together.
    assert "distributed_c10d.py" in (output / "logs" / "signs" / "0.stacks").read_text()
    assert_same_run(output, alone)


def never() -> None:
    taken = Trainer.step

    def step(self, work):
        if self.world.rank == 1:
            raise RuntimeError("no luck")
        return taken(self, work)

    Trainer.step = step


def test_what_always_fails_is_not_started_for_ever(two_stages, tmp_path):
    said = run(two_stages, tmp_path / "run", "--devices", "2", code=70, prepare=never)
    assert said.count("all ranks start again") == 3
    assert "started again 3 times without a new step, so it stops here" in said
    assert said.count("rank 1: RuntimeError: no luck;") == 4
    assert "Traceback" not in said, "nor of the rank that has lost the other"
    assert "gloo" not in said
    assert 'raise RuntimeError("no luck")' in (tmp_path / "run" / "logs" / "signs" / "1.stacks").read_text()


def test_where_memory_lacks_ranks_that_share_weights_begin_anew_in_smaller_batches(two_stages, alone, tmp_path):
    output, changes = tmp_path / "run", ("sharding=sharded", "tokens_per_batch=256")
    options = [word for change in changes for word in ("--set", f"stages.sft.train.{change}")]
    said = run(two_stages, output, "--devices", "2", *options, prepare=LittleMemory(140))
    assert re.search(r"rank [01]: step 1: out of memory \(CUDA out of memory.*\); from here on in smaller batches; all ranks start", said)
    assert "stages.sft: in batches of up to 128 tokens, since more did not fit into memory" in said
    assert_same_run(output, alone)


def test_what_the_user_can_mend_is_told_once(two_stages, tmp_path):
    said = run(two_stages, tmp_path / "run", "--devices", "2", "--set", "stages.sft.max_length=100000", code=1)
    assert said.count("max_length") == 1
    assert "start again" not in said


def test_the_quickstart_in_miniature_on_two_devices(tmp_path):
    """Every rank reads the one small model and the rows that the leader has made."""
    quickstart = Path(__file__).parents[1] / "presets" / "quickstart.toml"
    said = run_anew(quickstart, tmp_path / "run", "--smoke", "--device", "cpu", "--devices", "2")
    assert "2 of them" in said
    assert (tmp_path / "run" / "dpo" / "model").is_dir()


def lacking() -> None:
    taken = Trainer.step

    def step(self, work):
        if self.world.rank == 1:
            raise ZkitError("a disk that only this machine lacks")
        return taken(self, work)

    Trainer.step = step


def test_what_only_another_rank_lacks_is_told_too(two_stages, tmp_path):
    said = run(two_stages, tmp_path / "run", "--devices", "2", code=1, prepare=lacking)
    assert "rank 1: a disk that only this machine lacks (logs in " in said
    assert "start again" not in said

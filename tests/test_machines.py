"""`zkit run --nodes 2`: two commands in the place of two machines, which end together, however one of them does."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from forked import Forked, start
from launched import assert_same_run, slow, steps, wait_until

from zephyr_kit import ZkitError
from zephyr_kit.engine import Trainer

NAMES = (socket.gethostname(), f"{socket.gethostname()}-2")


@dataclass(frozen=True)
class Machine:
    """Whose devices lack something, if it comes to the rank that is said."""

    lacking: int | None

    def __call__(self) -> None:
        slow()
        taken = Trainer.step

        def step(trainer: Trainer, work: object) -> object:
            if trainer.world.rank == self.lacking and trainer.num_steps_taken == 4:
                raise ZkitError("a disk that only this machine lacks")
            return taken(trainer, work)

        Trainer.step = step


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def two(preset: Path, output: Path, *, lacking: int | None = None) -> Iterator[list[Forked]]:
    """The first is where both meet."""
    environment = {**os.environ, "ZKIT_CACHE": str(output.parent / "cache"), "GLOO_SOCKET_IFNAME": "lo"}
    where = ["--nodes", "2", "--rendezvous", f"127.0.0.1:{free_port()}", "--devices", "1"]
    arguments = ["run", str(preset), "--output", str(output), *where]
    machines = []
    try:
        for name in NAMES:
            machines.append(start(arguments, output.with_name(name), prepare=Machine(lacking), environment=environment, ranks=True))
            wait_until((output / "logs" / name / "signs").exists)
        yield machines
    finally:
        for machine in machines:
            if machine.poll() is None:
                machine.kill()


def test_two_machines_are_one(two_stages, alone, tmp_path):
    with two(two_stages, tmp_path / "run") as machines:
        codes = [machine.wait(120) for machine in machines]
    said = [machine.said for machine in machines]
    assert codes == [0, 0], said
    assert not any("Traceback" in text or "TCPStore" in text for text in said), said
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_started_again_with_that_of_the_other(two_stages, alone, tmp_path, rank):
    output = tmp_path / "run"
    with two(two_stages, output) as machines:
        wait_until(lambda: steps(output) >= 4)
        (pid,) = output.glob(f"logs/*/signs/{rank}.pid")
        os.kill(int(pid.read_text()), signal.SIGKILL)
        codes = [machine.wait(120) for machine in machines]
    said = [machine.said for machine in machines]
    assert codes == [0, 0], said
    assert any(f"rank {rank} was ended by SIGKILL; all ranks start again" in text for text in said), said
    assert_same_run(output, alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_ends_for_good_tells_the_other_why(two_stages, tmp_path, rank):
    with two(two_stages, tmp_path / "run", lacking=rank) as machines:
        codes = [machine.wait(60) for machine in machines]
    said = [machine.said for machine in machines]
    assert codes == [1, 1], said
    own = f"rank {rank}: a disk that only this machine lacks"
    ended = [f"another machine has ended the run: {own} (logs in {tmp_path}/run/logs/{NAMES[rank]})" in text for text in said]
    assert sorted(ended) == [False, True], said
    assert all(own in text for text in said)
    assert not any("Traceback" in text or "TCPStore" in text for text in said), said


@pytest.mark.parametrize("which", [0, 1])
def test_one_that_is_asked_to_stop_stops_both(two_stages, tmp_path, which):
    output = tmp_path / "run"
    with two(two_stages, output) as machines:
        wait_until(lambda: steps(output) >= 2)
        machines[which].send_signal(signal.SIGTERM)
        codes = [machine.wait(60) for machine in machines]
    said = [machine.said for machine in machines]
    assert codes == [143, 143], said
    newest = max((output / "sft" / "checkpoints").glob("step-*"))
    assert int(newest.name.partition("-")[2]) == steps(output)


def test_one_that_is_gone_without_a_word_ends_the_other(two_stages, tmp_path):
    output = tmp_path / "run"
    with two(two_stages, output) as machines:
        wait_until(lambda: steps(output) >= 2)
        machines[0].send_signal(signal.SIGKILL)
        code, said = machines[1].wait(60), machines[1].said
    assert code == 1, said
    assert "--rendezvous: the machine where all meet has ended, or can no longer be reached" in said
    assert f"(logs in {output}/logs)" in said
    assert "Traceback" not in said

"""How a run on several devices is stopped, struck and refused while it starts, and how its launcher takes the ranks with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launched import pid_of, run, started, wait_until, write_preset

from zephyr_kit import world
from zephyr_kit.engine import Trainer
from zephyr_kit.heartbeat import FOLDER
from zephyr_kit.records import write_json
from zephyr_kit.runs import RunError, RunFolder

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_preset(tmp_path_factory.mktemp("preset"))


def never_met() -> None:
    """The second rank stays away, and the first waits for it where Python hears no signal."""
    met = world.rendezvous

    def rendezvous(*given, **options):
        if os.environ["RANK"] == "1":
            time.sleep(600)
        Path(os.environ[FOLDER], "meets").touch()
        return met(*given, **options)

    world.rendezvous = rendezvous


@pytest.mark.parametrize(("whom", "number"), [("launcher", signal.SIGTERM), ("launcher", signal.SIGINT), ("all", signal.SIGTERM)])
def test_asked_to_end_while_ranks_meet(preset, tmp_path, whom, number):
    output = tmp_path / "run"
    with started(preset, output, "--devices", "2", prepare=never_met) as process:
        ranks = [wait_until(lambda rank=rank: pid_of(output, rank)) for rank in (0, 1)]
        wait_until((output / "logs" / "signs" / "meets").exists)
        time.sleep(0.5)  # until it waits; sooner, the test would find less, and not fail
        for pid in [process.pid] if whom == "launcher" else ranks:
            os.kill(pid, number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == CODES[number], said
    assert said.count("before it had begun") == 1
    assert "saved" not in said
    assert "death signal" not in said


def endless() -> None:
    taken = Trainer.step

    def step(self, work):
        if self.num_steps_taken == 4:
            Path(os.environ[FOLDER], f"{self.world.rank}.endless").touch()
            time.sleep(600)
        return taken(self, work)

    Trainer.step = step


def is_free(output: Path) -> bool:
    try:
        with RunFolder(output).locked():
            return True
    except RunError:
        return False


@pytest.mark.parametrize("how", ["SIGINT twice", "SIGKILL"])
def test_a_launcher_that_is_gone_takes_its_ranks_with_it(preset, tmp_path, how):
    output = tmp_path / "run"
    with started(preset, output, "--devices", "2", prepare=endless) as process:
        wait_until(lambda: all((output / "logs" / "signs" / f"{rank}.endless").exists() for rank in (0, 1)))
        assert not is_free(output)
        if how == "SIGKILL":
            process.send_signal(signal.SIGKILL)
        else:
            process.send_signal(signal.SIGINT)
            wait_until(lambda: "Ctrl-C again leaves at once" in process.said)
            time.sleep(0.7)  # sooner, it would be taken for the same one
            process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        wait_until(lambda: is_free(output))
    assert process.returncode == (-9 if how == "SIGKILL" else 130), said
    assert ("left at once" in said) == (how != "SIGKILL")


def test_a_cache_that_cannot_be_written_is_told_once(preset, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    said = run(preset, tmp_path / "run", "--devices", "2", code=4)
    assert said.count("choose another folder with ZKIT_CACHE") == 1
    assert "Traceback" not in said
    assert "start again" not in said


def test_a_folder_that_can_only_be_read_is_told(preset, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        said = run(preset, place, "--devices", "2", code=4)
        assert f"{place}/logs: cannot be written to: Read-only file system; choose another folder with --output" in said
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_what_a_kill_has_left_of_a_file_is_removed_when_it_is_written_again(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    for owner in (ended.pid, os.getpid(), 1):
        (tmp_path / f".done.json.{os.uname().nodename}.{owner}").write_text("{")
    write_json(tmp_path / "done.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {"done.json", f".done.json.{os.uname().nodename}.1"}

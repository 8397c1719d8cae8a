"""A run under Ray: its parts, and, where Ray is installed, on a cluster of this machine."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from launched import assert_same_run, run_anew, steps, wait_until, write_preset
from zkit_launchers.guard import RanksFailed
from zkit_launchers.machine import Ended, Machine
from zkit_launchers.ray import Ray, _refuse_failure

from zephyr_kit.exits import Exit
from zephyr_kit.heartbeat import LAUNCHER
from zephyr_kit.plugins import ONLY_OURS
from zephyr_kit.protocols import Job
from zephyr_kit.stopping import Stop, Stopped

on_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
LOST = Ended(-signal.SIGKILL, "a machine was lost")


def job(folder: Path, nodes: int = 1, fewest: int | None = None) -> Job:
    return Job("tiny", ("run", "a b.toml"), folder, "cpu", 2, nodes, fewest or nodes)


def test_each_machine_runs_the_command_and_they_meet_on_the_first(tmp_path):
    assert Ray().arguments(job(tmp_path), "n1") == ("run", "a b.toml", "--devices", "2")
    several = Ray(port=7).arguments(job(tmp_path, nodes=4), "n1")
    assert several == ("run", "a b.toml", "--devices", "2", "--nodes", "4", "--rendezvous", "n1:7")


def test_what_is_set_for_zkit_reaches_every_machine(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("ZKIT_CACHE", "/shared")
    monkeypatch.setenv(ONLY_OURS, "1")  # zkit --no-third-party
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    environment = Ray(cpus_per_device=3).environment()
    assert (environment["ZKIT_CACHE"], environment[ONLY_OURS], environment["OMP_NUM_THREADS"]) == ("/shared", "1", "3")
    assert "OPENAI_API_KEY" not in environment
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Ray().environment()["OMP_NUM_THREADS"] == "5"


def test_a_range_of_machines_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: object())
    assert Ray().problems(job(tmp_path, nodes=4)) == []
    assert Ray().problems(job(tmp_path, nodes=4, fewest=2)) == ["--nodes: Ray holds as many machines as are asked for; give one number"]


def test_a_machine_gives_the_code_and_the_words_back(tmp_path):
    ended = Machine(1).run(("run", "quickstart", "--output", "run", "--set", "seed=none"), {"ZKIT_CACHE": str(tmp_path)}, tmp_path)
    assert ended.code == Exit.NOT_UNDERSTOOD
    assert "`seed`" in ended.told
    assert Machine(0).run(("--version",), {}, tmp_path) == Ended(0, "")
    lacking = Machine(0).run(("--version",), {}, tmp_path / "lacking")
    assert lacking.code == Exit.CANNOT
    assert f"cannot start zkit in {tmp_path / 'lacking'}: No such file" in lacking.told


def test_a_signal_reaches_what_a_machine_has_started_though_ray_blocks_it(tmp_path, monkeypatch):
    started = tmp_path / "started"
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\nimport os, signal\nsignal.signal(signal.SIGINT, lambda *_: os._exit(42))\n"
        f"open({str(started)!r}, 'w').write(os.environ[{LAUNCHER!r}])\nsignal.pause()\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    machine = Machine(0)

    def run() -> Ended:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return machine.run((), {}, tmp_path)

    with ThreadPoolExecutor() as pool:
        running = pool.submit(run)
        wait_until(lambda: started.exists() and started.read_text())
        machine.send(signal.SIGINT)
        ended = running.result(timeout=60)
    assert ended.code == 42
    assert int(started.read_text()) == os.getpid()


@pytest.mark.parametrize(
    ("ended", "error", "code"),
    [
        (Ended(5, "no number"), RanksFailed, Exit.NUMBERS),
        (Ended(70, "rank 1: a bug"), RanksFailed, Exit.CRASHED),
        (Ended(134, "ended with code 134"), RanksFailed, Exit.CRASHED),
        (LOST, RanksFailed, Exit.CRASHED),
        (Ended(138, Exit.WARNED.meaning), Stopped, Exit.WARNED),
        (Ended(75, "--max-time is over before it had begun"), Stopped, Exit.TIME),
    ],
)
def test_the_command_ends_as_the_first_that_failed(ended, error, code):
    with pytest.raises(error) as raised:
        _refuse_failure(ended)
    assert raised.value.exit is code
    assert str(raised.value) == ended.told


@pytest.mark.parametrize(
    ("ends", "starts"),
    [
        ([Ended(0, "")], 1),
        ([Ended(5, "no number")], 1),
        ([Ended(70, "a bug")], 1),
        ([LOST, Ended(0, "")], 2),
        ([LOST] * 9, 4),
    ],
)
def test_only_lost_machines_are_started_again_and_not_for_ever(ends, starts, monkeypatch, tmp_path):
    taken = iter(ends)
    seen: list[Ended] = []
    monkeypatch.setattr(Ray, "_start", lambda *_: seen.append(next(taken)) or seen[-1])
    told: list[str] = []
    assert Ray()._ended(job(tmp_path), Stop(), told.append) == seen[-1]
    assert len(seen) == starts
    assert told == ["a machine was lost; all machines start again from the last checkpoint"] * (starts - 1)


@contextmanager
def launched(preset: Path, output: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The command, and where it writes what it says."""
    environment = {**os.environ, "ZKIT_CACHE": str(output.parent / "cache"), "OMP_NUM_THREADS": "1"}
    zkit = [sys.executable, "-m", "zephyr_kit", "launch", "ray", str(preset), "--output", str(output)]
    command = [*zkit, "--device", "cpu", "--devices", "2", "--option", "address=local", *options]
    log = output.with_name("log")
    with (
        log.open("wb") as said,
        subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            yield process, log
        finally:
            process.kill()


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_preset(tmp_path_factory.mktemp("preset"))


@on_ray
def test_a_run_under_ray_is_the_same_also_when_its_machine_is_lost(preset, tmp_path):
    run_anew(preset, tmp_path / "expected", "--device", "cpu", "--devices", "2", "--set", "stages.sft.train.steps=60")
    with launched(preset, tmp_path / "run", "--set", "stages.sft.train.steps=60") as (process, log):
        wait_until(lambda: steps(tmp_path / "run") >= 4)
        actor = re.search(r"Machine pid=(\d+)", log.read_text())
        assert actor is not None
        os.kill(int(actor[1]), signal.SIGKILL)
        assert process.wait(timeout=200) == 0, log.read_text()
    assert "a machine of the Ray cluster was lost" in log.read_text()
    assert_same_run(tmp_path / "run", tmp_path / "expected")


@on_ray
def test_a_wrong_value_found_late_ends_the_command_with_its_code_and_once(preset, tmp_path):
    with launched(preset, tmp_path / "run", "--set", "stages.sft.train.learning_rate=1e30") as (process, log):
        assert process.wait(timeout=200) == Exit.NUMBERS, log.read_text()
    assert log.read_text().count("3 steps one after another had no finite loss or gradient") == 1
    assert "start again" not in log.read_text()


@on_ray
def test_asked_to_end_the_run_saves_and_ends_with_the_signals_code(preset, tmp_path):
    with launched(preset, tmp_path / "run", "--set", "stages.sft.train.steps=20000") as (process, log):
        wait_until(lambda: steps(tmp_path / "run") >= 4)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=200) == Exit.WARNED, log.read_text()
    assert log.read_text().rstrip().endswith(f"{Exit.WARNED.meaning}")
    last = max((tmp_path / "run" / "sft" / "checkpoints").iterdir()).name
    assert last == f"step-{steps(tmp_path / 'run'):08d}"

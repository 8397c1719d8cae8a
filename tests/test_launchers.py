"""What `zkit launch` hands to a cluster."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from zkit_launchers import elastic
from zkit_launchers.elastic import Elastic
from zkit_launchers.guard import Starts
from zkit_launchers.ray import Ray
from zkit_launchers.slurm import Slurm

from zephyr_kit import ZkitError, hookimpl
from zephyr_kit.cli import build
from zephyr_kit.cli.launch import launch
from zephyr_kit.cli.ranks import Devices
from zephyr_kit.plugins import Plugins
from zephyr_kit.protocols import Job

QUICKSTART = str(Path(__file__).parents[1] / "presets" / "quickstart.toml")


def job(folder: Path, **given: object) -> Job:
    return Job(**{"name": "tiny", "arguments": ("run", "a b.toml"), "folder": folder, "device": "cuda", "devices": 8, "nodes": 4, **given})  # type: ignore[arg-type]


def asked(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build(), ["launch", *arguments])
    return result.exit_code, result.output or str(result.exception)


def test_a_script_for_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    folder = tmp_path / "my runs at 50%"
    folder.mkdir()
    told: list[str] = []
    slurm = Slurm(partition="gpu", time="24:00:00", more=("--mem=0",), setup=("module load cuda",), warning=120)
    assert slurm.launch(job(folder, fewest_nodes=4), told.append) == 0
    script = folder / "slurm.sh"
    assert told == [f"to hand it in:  sbatch '{script}'"]
    lines = script.read_text().splitlines()
    for line in ("--nodes=4", "--partition=gpu", "--time=24:00:00", "--gpus-per-node=8", "--signal=USR1@120", "--requeue", "--mem=0"):
        assert f"#SBATCH {line}" in lines
    assert "module load cuda" in lines
    assert not [line for line in lines if "account" in line]
    (step,) = [line for line in lines if line.startswith("srun")]
    words = [sys.executable, "-m", "zephyr_kit", "run", "a b.toml"]
    assert step == (
        f"srun --kill-on-bad-exit=1 $processors {shlex.join(words)} --devices 8"
        ' --nodes "$SLURM_JOB_NUM_NODES" --rendezvous "$head:29500"'
    )
    (log,) = [line.removeprefix("#SBATCH ") for line in lines if "--output" in line]
    assert shlex.split(log) == [f"--output={folder}/slurm-%j.log".replace("50%", "50%%")]
    assert subprocess.run(["/bin/bash", "-n", str(script)], check=False).returncode == 0


def test_the_script_meets_on_the_first_machine_and_asks_for_another_turn(tmp_path, monkeypatch):
    """With stand-ins for Slurm's commands: what they are called with, and what follows from how the run ends."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_ins = {
        "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else echo "scontrol $*"; fi',
        "srun": 'shift; echo "srun $*"; exit ${CODE:-0}',
        "sbatch": 'echo "Submitted batch job 7"',
    }
    for name, text in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    told: list[str] = []
    Slurm().launch(job(tmp_path, nodes=2, devices=1), told.append)
    assert told == ["Submitted batch job 7"]
    environment = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    for code, asks in ((0, False), (1, False), (138, True)):
        ran = subprocess.run(
            ["/bin/bash", str(tmp_path / "slurm.sh")], env={**environment, "CODE": str(code)}, capture_output=True, text=True, check=False
        )
        assert ran.returncode == code
        assert "--devices 1 --nodes 2 --rendezvous n1:29500" in ran.stdout
        assert ("scontrol requeue 7" in ran.stdout) is asks
        assert ran.stdout.startswith(f"srun {sys.executable} ")
    asked_for = {**environment, "SLURM_CPUS_PER_TASK": "6"}
    ran = subprocess.run(["/bin/bash", str(tmp_path / "slurm.sh")], env=asked_for, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("srun --cpus-per-task=6 ")


def test_the_command_passes_the_options_of_run_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    options = ["--set", "seed=7", "--set", "name=other", "--smoke", "--max-time", "2h", "--device", "cpu", "--devices", "3"]
    code, said = asked("slurm", QUICKSTART, *options, "--output", str(tmp_path / "run"), "--option", "account=me")
    assert code == 0, said
    script = (tmp_path / "run" / "slurm.sh").read_text()
    assert "#SBATCH --account=me" in script
    assert "#SBATCH --cpus-per-task=3" in script
    own = "--set seed=7 --set name=other --device cpu --max-time 7200s --smoke"
    passed_on = f"run {QUICKSTART} --output {tmp_path / 'run'} {own} --devices 3\n"
    assert passed_on in script


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["slum", QUICKSTART], "slurm"),
        (["slurm", QUICKSTART, "--option", "partitio=x"], "partition"),
        (["slurm", QUICKSTART, "--option", "port=far"], "port"),
        (["slurm", QUICKSTART, "--nodes", "2", "--rendezvous", "n1:1"], "--rendezvous: under Slurm"),
        (["slurm", QUICKSTART, "--nodes", "some"], "--nodes some: takes a number of machines"),
        (["ray", QUICKSTART], "pip install 'zephyr-kit[ray]'"),
    ],
)
def test_what_is_wrong_is_told(arguments, told, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    code, said = asked(*arguments, "--device", "cpu")
    assert code != 0
    assert told in said


def test_under_another_launcher_devices_are_refused_and_not_ignored(monkeypatch, tmp_path):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    for option in (["--devices", "2"], ["--nodes", "2"], ["--rendezvous", "n1:1"]):
        result = CliRunner().invoke(build(), ["run", QUICKSTART, "--device", "cpu", "--output", str(tmp_path), *option])
        assert "the processes are started already" in str(result.exception)


def test_where_nobody_is_met_is_told_in_a_line(monkeypatch):
    from zkit_launchers import meeting

    monkeypatch.setattr(meeting, "SECONDS_TO_ANSWER", 0.0)
    monkeypatch.setattr(meeting, "SECONDS_BETWEEN_TRIES", 0.0)
    told: list[str] = []
    with pytest.raises(ZkitError, match=r"^--rendezvous nosuch.invalid:29500: no machine of this run could be met there: .*$"):
        meeting.meeting("tiny", nodes=2, fewest=2, endpoint="nosuch.invalid:29500", say=told.append)
    assert [line.partition(", ")[0] for line in told] == ["waiting for nosuch.invalid:29500"]


def test_something_else_that_answers_is_told_in_a_line(monkeypatch, capfd):
    from zkit_launchers import meeting

    monkeypatch.setattr(meeting, "SECONDS_FOR_A_TRY", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ZkitError, match=rf"^--rendezvous {endpoint}: .*: what answers is something else$"):
            meeting.meeting("tiny", nodes=2, fewest=2, endpoint=endpoint, say=print)
    assert capfd.readouterr() == ("", "")


def test_a_third_party_may_launch(tmp_path):
    from dataclasses import dataclass

    seen: list[Job] = []

    @dataclass(frozen=True)
    class Queue:
        name: str = "long"

        def problems(self, job):
            return []

        def launch(self, job, say):
            seen.append(job)
            say(f"handed in to {self.name}")
            return 5

    class Plugin:
        @hookimpl
        def zkit_launchers(self):
            return {"queue": Queue}

    result = CliRunner().invoke(
        launch,
        ["queue", QUICKSTART, "--option", "name=short", "--devices", "2", "--device", "cpu", "--output", str(tmp_path)],
        obj=Plugins(Plugin()),
        standalone_mode=False,
    )
    assert result.return_value == 5
    assert "handed in to short" in result.output
    assert (seen[0].devices, seen[0].arguments[:2]) == (2, ("run", QUICKSTART))


def test_devices_that_are_not_there_are_told(tmp_path):
    assert Elastic().problems(job(tmp_path))[0].startswith("--devices 8: torch finds 0 CUDA devices")
    assert Elastic().problems(job(tmp_path, device="cpu")) == []
    with pytest.raises(ZkitError, match="go together"):
        Devices("cpu", nodes="2").are_several()
    with pytest.raises(ZkitError, match="--nodes 3:2"):
        Devices("cpu", nodes="3:2")
    assert Ray().problems(job(tmp_path, rendezvous="x:1"))


def test_ranks_share_the_processors_that_the_command_may_use(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    with elastic._passed_on(job(tmp_path, devices=2), tmp_path):
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in os.environ


def test_starts_come_to_nothing_by_the_steps_of_their_own_stage():
    starts, counts = Starts(), []
    for progress in [(40, "sft"), (40, "sft"), (7, "dpo"), (0, ""), (7, "dpo"), (9, "dpo")]:
        starts.came_to(*progress)
        counts.append(starts.in_vain)
    assert counts == [0, 1, 0, 1, 2, 0]


def test_teams_that_do_not_divide_the_devices_are_refused_before_anything_is_handed_in(tmp_path):
    asks = (QUICKSTART, "--output", str(tmp_path / "run"), "--device", "cpu", "--set", "stages.dpo.train.context_parallel=3")
    code, said = asked("slurm", *asks, "--devices", "4", "--nodes", "2:3", "--option", "submit=false")
    assert code != 0
    assert "[stages.dpo] `train.context_parallel` = 3 does not divide the 8 devices" in said
    assert not (tmp_path / "run").exists()
    assert asked("slurm", *asks, "--devices", "3", "--nodes", "2", "--option", "submit=false")[0] == 0


def test_an_option_without_a_value_is_told_as_an_option(tmp_path):
    code, said = asked("slurm", QUICKSTART, "--output", str(tmp_path / "run"), "--option", "partition")
    assert code != 0
    assert said == "--option partition: write it as key=value, as in partition=gpu"

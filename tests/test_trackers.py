"""Trackers: the real libraries, offline, read back by themselves; one that fails stops nothing; what leaves the machine is told."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_presets import FROM_SCRATCH
from zkit_trackers.mlflow import MLflow
from zkit_trackers.reach import identity
from zkit_trackers.tensorboard import TensorBoard
from zkit_trackers.trackio import Trackio
from zkit_trackers.wandb import WandB

from zephyr_kit import cli, hookimpl
from zephyr_kit.metrics import MetricLog
from zephyr_kit.observe import Report, Run
from zephyr_kit.plugins import Plugins
from zephyr_kit.testing import TrackerLaws
from zephyr_kit.tracking import Tracking

PRESET = """
name = "tracked"
track = ["tensorboard"]
""" + FROM_SCRATCH + """[stages.sft]
objective = "sft"
data = [{ use = "quickstart", part = "chat", count = 8 }]
held_out = [{ use = "quickstart", part = "chat", split = "held_out", count = 2 }]
max_length = 512
train = { steps = 3, examples_per_step = 4, learning_rate = 1e-3 }
"""
STEPS = [Report(step, 3, step / 3, 2.0 / step, {"reward/accuracy": step / 3}, 1.0, 1e-3, 10, 5, 100.0) for step in (1, 2, 3)]


def zkit(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code


def a_run(folder: Path, first: int = 0) -> Run:
    (folder / "a-run" / "dpo").mkdir(parents=True, exist_ok=True)
    return Run("name", "dpo", folder / "a-run" / "dpo", 3, first, {"objective.beta": 0.1, "data[0].use": "jsonl"})


def tell(tracker, folder: Path, between=lambda: None) -> None:
    """Killed after two steps, of which the second is lost, and continued."""
    first = tracker.open(a_run(folder))
    for report in STEPS[:2]:
        first.write(report.step, report.facts() | {"step": report.step})
    first.close(RuntimeError("killed"))
    between()
    again = tracker.open(a_run(folder, 1))
    for report in STEPS[1:]:
        again.write(report.step, {"loss": report.loss, **report.metrics})
    again.write(3, {"held_out/loss": 0.5})
    again.close(None)


class TestTensorBoard(TrackerLaws):
    tracker = TensorBoard()


def test_tensorboard_reads_what_a_training_wrote(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "tracked.toml").write_text(PRESET, "utf-8")
    assert zkit("run", tmp_path / "tracked.toml", "--output", tmp_path / "run") == 0
    found = reading.EventAccumulator(str(tmp_path / "run" / "sft" / "tensorboard"))
    found.Reload()
    lines = list(MetricLog(tmp_path / "run" / "sft" / "metrics.jsonl").lines())
    for name in ("loss", "held_out/loss", "learning_rate", "tokens_per_second"):
        expected = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]
        assert [(event.step, event.value) for event in found.Scalars(name)] == expected


def test_tensorboard_forgets_steps_that_are_taken_again(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tell(TensorBoard(str(tmp_path / "all")), tmp_path)
    found = reading.EventAccumulator(str(tmp_path / "all" / "a-run" / "dpo"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_what_was_written_and_a_stage_goes_on_in_its_run(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tell(MLflow(uri), tmp_path)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("zephyr-kit").experiment_id
    (run,) = client.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == ("a-run/dpo", "FINISHED")
    assert run.data.params == {"objective.beta": "0.1", "data.0.use": "jsonl"}
    assert {metric.step for metric in client.get_metric_history(run.info.run_id, "reward/accuracy")} == {1, 2, 3}
    assert run.data.metrics["held_out/loss"] == 0.5


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_all_for_later_where_it_is_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB__SERVICE_WAIT": "250", "WANDB_INIT_TIMEOUT": "250"}.items():
        monkeypatch.setenv(name, value)
    tell(WandB(), tmp_path, between=lambda: time.sleep(1.01))  # its folders are named by the second

    def kept():
        return [file.read_bytes() for file in (tmp_path / "a-run" / "dpo" / "wandb").glob("offline-run-*/*.wandb")]

    # A process of W&B's writes, and may be at it still.
    words, until = (b"reward/accuracy", b"held_out/loss", b"objective.beta", b"a-run/dpo"), time.monotonic() + 120
    while not all(word in b"".join(kept()) for word in words) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(kept()) == 2
    text = b"".join(kept())
    assert [word for word in words if word not in text] == []
    assert str(Path(__file__).parent).encode() not in text


@pytest.mark.filterwarnings("ignore")
def test_trackio_reads_what_was_written(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import utils
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr(utils, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    tell(Trackio(), tmp_path)
    (name,) = SQLiteStorage.get_runs("zephyr-kit")
    assert name.startswith("a-run/dpo ")
    lines = SQLiteStorage.get_logs("zephyr-kit", name)
    assert [line["loss"] for line in lines if line["step"] == 3 and "loss" in line] == [pytest.approx(2 / 3)]
    assert any(line.get("held_out/loss") == 0.5 for line in lines)


def test_a_new_stage_in_the_same_place_is_another_run(tmp_path):
    first = identity(a_run(tmp_path))
    assert identity(a_run(tmp_path, 1)) == first
    (tmp_path / "a-run").rename(tmp_path / "moved")
    assert identity(Run("name", "dpo", tmp_path / "moved" / "dpo", 3, 1)) == first
    assert identity(a_run(tmp_path)) != first


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("space", [None, "me/figures"])
def test_a_space_that_trackio_makes_is_private_whoever_names_it(tmp_path, monkeypatch, space):
    trackio = pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "we/all")
    asked = []
    monkeypatch.setattr(trackio, "init", lambda **how: asked.append(how))
    Trackio(space=space).open(a_run(tmp_path))
    assert [(how["space_id"], how["private"]) for how in asked] == [(space or "we/all", True)]


# What leaves the machine, and what stands in the way


def test_what_leaves_the_machine_is_known_before(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    assert TensorBoard().destination() is None
    assert WandB().destination() == "https://api.wandb.ai"
    assert WandB(mode="offline").destination() is None
    assert Trackio().destination() is None
    assert Trackio(space="me/figures").destination() == "https://huggingface.co/spaces/me/figures"
    assert MLflow().destination() is None
    assert MLflow("https://user:word@mlflow.example:5000/x").destination() == "https://mlflow.example:5000"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "we/all")
    assert (WandB().destination(), MLflow().destination()) == (None, "databricks")
    assert Trackio().destination() == "https://huggingface.co/spaces/we/all"


def test_nobody_is_asked_for_a_password_in_the_middle_of_a_run(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (problem,) = WandB(mode="online").problems()
    assert "wandb login, or set WANDB_API_KEY" in problem
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert WandB(mode="online").problems() == []


def test_a_library_that_is_not_there_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for tracker in (TensorBoard(), WandB(), Trackio(), MLflow()):
        assert "pip install 'zephyr-kit[track]'" in tracker.problems()[0]


def test_before_a_run_it_says_where_figures_go_and_what_is_wrong(tmp_path, capsys, monkeypatch):
    (tmp_path / "tracked.toml").write_text(PRESET, "utf-8")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    preset = (tmp_path / "tracked.toml", "--output", tmp_path / "run")
    assert zkit("run", *preset, "--set", 'track=["tensorbord"]') == 2
    assert "did you mean `tensorboard`?" in capsys.readouterr().err
    monkeypatch.setattr("zkit_trackers.wandb.WandB.open", _refuses)
    assert zkit("run", *preset, "--set", 'track=["wandb"]') == 0
    said = capsys.readouterr().out
    told = said.index("wandb: the figures of every step, and the settings of every stage that trains, go to https://api.wandb.ai")
    assert told < said.index("plugin track[0] (wandb) is broken: zkit_run_started raised ConnectionError: no server; training goes on")
    assert len(list(MetricLog(tmp_path / "run" / "sft" / "metrics.jsonl").lines())) == 4


def _refuses(*_):
    raise ConnectionError("no server")


@dataclass(frozen=True)
class Failing:
    """Fails at a step."""

    at: int
    written: list = field(default_factory=list)

    def problems(self):
        return []

    def destination(self):
        return None

    def open(self, run):
        return self

    def write(self, step, figures):
        self.written.append(step)
        if step == self.at:
            raise TimeoutError(json.dumps(sorted(figures)))

    def close(self, error):
        self.written.append("closed")


def test_one_that_fails_is_left_alone_and_told_of_once(tmp_path):
    bad, good = Failing(2), Failing(9)
    plugins = Plugins(SimpleNamespace(zkit_trackers=hookimpl(lambda: {"failing": Failing})), discover=False)
    plugins.add(Tracking(bad), "bad")
    plugins.add(Tracking(good), "good")
    run = a_run(tmp_path)
    told = plugins.tell("zkit_run_started", run=run)
    for report in STEPS:
        told += plugins.tell("zkit_step_ended", run=run, report=replace(report, wait_seconds=(0.5, 0.25)))  # of two ranks
    told += plugins.tell("zkit_run_ended", run=run, error=None)
    assert [line[:13] for line in told] == ["plugin bad is"]
    assert '"wait_share"' in told[0]
    assert bad.written == [1, 2]
    assert good.written == [1, 2, 3, "closed"]

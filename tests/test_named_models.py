"""A model that a user names is one model, whichever command is told its name."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exports import write_run, write_weights

from zephyr_kit.cli.models import find_subjects, run_of
from zephyr_kit.config import PresetError
from zephyr_kit.models import find_model, find_models
from zephyr_kit.plugins import Plugins
from zephyr_kit.protocols import Start
from zephyr_kit.subjects import Subject


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages with an adapter each, and within it what looks like an export: a whole model, and a further one, called `model`."""
    folder = tmp_path_factory.mktemp("named")
    weights = write_weights(folder / "weights")
    made = write_run(folder / "run", "stacked", weights)
    shutil.copytree(weights, made / "out")
    shutil.copytree(weights, made / "exports" / "model")
    return made


def subjects(*places: Path, stages: Any = (), base: bool = False, keys: Any = ()) -> dict[str, Subject]:
    def make(backend: Any, start: Start) -> Subject:
        return Subject(backend, start, None, None, SimpleNamespace())

    return find_subjects([str(place) for place in places], Plugins(), make, stages=stages, base=base, keys=keys)


def test_what_is_within_a_run_and_no_stages_is_a_model_of_its_own(run: Path):
    for place in (run / "out", run / "exports" / "model"):
        model = find_model(str(place), Plugins())
        assert (model.run, model.start, model.backend.weights, model.place) == (None, Start(), str(place), str(place))
        assert run_of(str(place)) is None
        assert list(subjects(place)) == [place.name]


def test_the_type_of_the_weights_is_told_by_their_config_and_by_keys(run: Path):
    (measured,) = subjects(run / "out").values()
    assert measured.backend == find_model(str(run / "out"), Plugins()).backend
    assert measured.backend.dtype == "float32"
    (told,) = subjects(run / "out", keys=("dtype=bfloat16",)).values()
    assert told.backend.dtype == "bfloat16"


@pytest.mark.parametrize("place", ["sft", "sft/model"])
def test_a_stage_is_named_by_its_folder_or_its_models(run: Path, place: str):
    model = find_model(str(run / place), Plugins())
    assert model == find_model(str(run), Plugins(), stage="sft")
    assert model.start == Start(run / "sft" / "model", seed=model.start.seed)
    ((name, subject),) = subjects(run / place).items()
    assert (name, subject.start, subject.backend) == ("sft", model.start, model.backend)
    with pytest.raises(PresetError, match="is of one stage already; give the run's folder"):
        find_model(str(run / place), Plugins(), stage="dpo")


def test_models_of_a_run_come_one_from_another(run: Path):
    assert [model.stages[-1].name for model in find_models(str(run), Plugins())] == ["sft", "dpo"]
    found = subjects(run, stages=("dpo",), base=True)
    assert list(found) == ["base", "dpo"]
    assert found["dpo"].before is not None
    assert found["dpo"].before.start.folder == run / "sft" / "model"
    assert list(subjects(run / "out", run, stages=("dpo",))) == ["out", "run/dpo"]


def test_an_adapter_of_no_run_stands_on_the_model_that_it_names(run: Path, tmp_path: Path):
    shutil.copytree(run / "sft" / "model", tmp_path / "adapter")
    (measured,) = subjects(tmp_path / "adapter").values()
    assert measured.start == find_model(str(tmp_path / "adapter"), Plugins()).start == Start(tmp_path / "adapter")
    assert (measured.backend.weights, measured.backend.dtype) == (str(run.parent / "weights"), "float32")


@pytest.mark.parametrize(
    ("place", "stage", "told"),
    [
        ("nowhere/at/all", None, "there is no such folder"),
        ("run/spt", None, "has no trained stage `spt`; did you mean `sft`"),
        ("run/out", "sft", "is no folder of a run, so it has no stage `sft`"),
        (".", None, "holds neither preset.toml nor config.json; give the folder that `zkit run` wrote"),
    ],
)
def test_what_is_no_model_is_refused(run: Path, place: str, stage: str | None, told: str):
    with pytest.raises(PresetError, match=told):
        find_model(str(run.parent / place), Plugins(), stage=stage)


def test_a_mistyped_run_does_not_become_a_repository_of_a_stranger(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run.parent.parent)
    place = f"{run.parent.name}/rum"
    with pytest.raises(PresetError, match=rf"{place}: there is no such folder in .*; did you mean `run`\?; if a repository"):
        find_model(place, Plugins())

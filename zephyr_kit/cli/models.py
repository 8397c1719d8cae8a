"""The models that a command is given: those of a run's stages, one of them, or any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.changes import apply_changes
from zephyr_kit.config import USE, Builder, PresetError, suggest
from zephyr_kit.plugins import Plugins
from zephyr_kit.preset import Preset, load
from zephyr_kit.protocols import Backend, Start
from zephyr_kit.stages import BASE, TrainStage
from zephyr_kit.subjects import Subject, lineage
from zephyr_kit.weights import looks_like_folder

if TYPE_CHECKING:
    Make = Callable[[Backend, Start], Subject]

BACKEND = "mistral"
"""What loads a model that no run of ours has made, unless another is named."""
PRESET = "preset.toml"


def find_models(
    places: Sequence[str], plugins: Plugins, make: Make, *, stages: Sequence[str], base: bool, keys: Sequence[str]
) -> dict[str, Subject]:
    """Each model by a name of its own; `stages` are those wanted of runs, `keys` more of the table of models that no run has made."""
    if keys and all(map(run_of, places)):
        raise PresetError(f"--model {keys[0]}: {places[0]} is of a run, whose preset says how its models are loaded")
    found: dict[str, Subject] = {}
    for place in places:
        models = _models_at(place, plugins, make, stages=stages, base=base, keys=keys)
        for name, subject in models.items():
            run = run_of(place)
            told = name if len(places) == 1 or run is None else f"{run.name}/{name}"
            found[told if told not in found else f"{place}/{name}"] = subject
    return found


def run_of(place: str) -> Path | None:
    """The folder of the run that a place is in: itself, or that of a stage, or of a stage's model."""
    folder = Path(place)
    return next((each for each in (folder, *folder.absolute().parents[:2]) if (each / PRESET).exists()), None)


def _models_at(
    place: str, plugins: Plugins, make: Make, *, stages: Sequence[str], base: bool, keys: Sequence[str]
) -> Mapping[str, Subject]:
    run = run_of(place)
    if run is None:
        return {Path(place).name: _of_no_run(place, plugins, make, keys)}
    within = Path(place).absolute().relative_to(run.absolute()).parts[:1]
    if within and stages:
        raise PresetError(f"--stage {stages[0]}: {place} is of one stage already; give the run's folder, {run}")
    return _of_run(run, load(run / PRESET, plugins.offers), make, stages=within or stages, base=base)


def _of_run(run: Path, preset: Preset, make: Make, *, stages: Sequence[str], base: bool) -> dict[str, Subject]:
    trained = [stage for stage in preset.stages if isinstance(stage.task, TrainStage) and (run / stage.name / "model").is_dir()]
    if not trained:
        raise PresetError(f"{run}: no stage has ended yet, so there is no model")
    first = make(trained[0].model, Start(seed=preset.seed))
    known = lineage(first, [(stage.name, stage.model, run / stage.name / "model") for stage in trained])
    for name in stages:
        if name not in known:
            raise PresetError(f"{run}: has no trained stage `{name}`{suggest(name, known)}")
    wanted = {name: subject for name, subject in known.items() if not stages or name in stages}
    return {BASE: first, **wanted} if base else wanted


def _of_no_run(place: str, plugins: Plugins, make: Make, keys: Sequence[str]) -> Subject:
    """A folder in Hugging Face format, an adapter's too, or a repository."""
    if looks_like_folder(place) and not Path(place).is_dir():
        raise PresetError(f"{place}: there is no such folder, and it is no name of a repository (OWNER/NAME)")
    table, origins = apply_changes({USE: BACKEND, "weights": place}, keys, place, option="--model")
    backend: Any = Builder(plugins.offers, place, origins).convert(Backend, table, "model")
    changed = frozenset(key.partition("=")[0].strip() for key in keys)
    return make(backend, Start(Path(place), changed) if Path(place).is_dir() else Start())

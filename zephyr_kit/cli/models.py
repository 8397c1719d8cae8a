"""The models that a command measures, each by a name of its own: those of a run's stages, one of them, or any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_kit.config import PresetError
from zephyr_kit.models import NamedModel, find_models, place_in_run
from zephyr_kit.plugins import Plugins
from zephyr_kit.protocols import Backend, Start
from zephyr_kit.stages import BASE
from zephyr_kit.subjects import Subject, lineage

if TYPE_CHECKING:
    Make = Callable[[Backend, Start], Subject]


def find_subjects(
    places: Sequence[str], plugins: Plugins, make: Make, *, stages: Sequence[str], base: bool, keys: Sequence[str]
) -> dict[str, Subject]:
    """Each model by a name of its own; `stages` are those wanted of runs, `keys` more of the table of models that no run has made."""
    runs = {place: run_of(place) for place in places}
    if keys and all(runs.values()):
        raise PresetError(f"--model {keys[0]}: {places[0]} is of a run, whose preset says how its models are loaded")
    found: dict[str, Subject] = {}
    for place, run in runs.items():
        # What is of runs alone, or of all others, is asked of no others; but of one that is named alone, to be told so.
        own = stages if run is not None or not any(runs.values()) else ()
        models = find_models(place, plugins, stages=own, keys=keys if run is None else ())
        for name, subject in _subjects(models, make, base=base).items():
            told = name if len(runs) == 1 or run is None else f"{run.absolute().name}/{name}"
            found[told if told not in found else f"{place}/{name}"] = subject
    return found


def run_of(place: str) -> Path | None:
    """The folder of the run that a place is in."""
    found = place_in_run(place)
    return None if found is None else found[0]


def _subjects(models: Sequence[NamedModel], make: Make, *, base: bool) -> dict[str, Subject]:
    last = models[-1]
    if last.run is None:
        return {last.name: make(last.backend, last.start)}
    first = make(last.trained[0].model, Start(seed=last.start.seed))
    known = lineage(first, [(stage.name, stage.model, last.run / stage.name / "model") for stage in last.trained])
    wanted = {name: known[name] for name in known if any(model.stages[-1].name == name for model in models)}
    return {BASE: first, **wanted} if base else wanted

"""A whole run, from its folder."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from zephyr_kit.facts.cost import Session
from zephyr_kit.facts.evaluations import measured_since, told_by_place
from zephyr_kit.facts.files import read_table, read_tables
from zephyr_kit.facts.stage import OF_KEY, StageFacts, StageReader
from zephyr_kit.facts.troubles import Trouble, troubles_of
from zephyr_kit.protocols import Evaluation
from zephyr_kit.records import digest, without_seal
from zephyr_kit.runs import RunError, RunFolder


@dataclass(frozen=True)
class RunFacts:
    """All that is known of a run."""

    folder: Path
    name: str
    description: str
    stages: Sequence[StageFacts]
    """In the order of the preset."""
    settings: Mapping[str, Any]
    """Every resolved value, by the path that a preset has for it."""
    origins: Mapping[str, str]
    """Where each came from."""
    accepted: Sequence[Mapping[str, str]] = ()
    """Inputs that had changed, which was accepted: `accepted`, the name, and what it `was` and `is`."""
    superseded: Sequence[str] = ()
    """Folders of results that were made before the present ones."""
    measured: Sequence[Evaluation] = ()
    """What `zkit evaluate` has found of it."""
    complaints: Sequence[str] = ()
    """Of files of the run itself that cannot be read."""
    label: str = ""
    """What tells it from other runs: its folder's name, unless others have the same."""

    @property
    def is_done(self) -> bool:
        """Whether every stage is."""
        return all(stage.state == "done" for stage in self.stages)

    @property
    def evaluations(self) -> list[Evaluation]:
        """Of all stages that measure, told apart by them where titles do not, and what `zkit evaluate` has found."""
        return [*told_by_place([(stage.name, stage.evaluations) for stage in self.stages]), *self.measured]

    @cached_property
    def troubles(self) -> list[Trouble]:
        """What was skipped or went wrong, the worst first."""
        found = [*self._own_troubles(), *(each for stage in self.stages for each in troubles_of(stage))]
        return sorted(found, key=lambda each: each.weight != "wrong")

    def _own_troubles(self) -> Iterator[Trouble]:
        yield from (Trouble("", text, "wrong") for text in self.complaints)
        for change in self.accepted:
            told = f"{change['accepted']} was changed: it was {change.get('was')}, it is {change.get('is')}"
            yield Trouble(change.get("stage", ""), told)
        if self.superseded:
            yield Trouble("", f"superseded/ keeps what was made before: {', '.join(self.superseded)}")


def read_run(folder: Path, *, most: int = 1000, whole: bool = True) -> RunFacts:
    """Read a run's folder; `most` and `whole` say how its curves are read (`read_curves`). Raises `RunError` if it is none."""
    complaints: list[str] = []
    preset = _preset(folder)
    settings = read_tables(folder / "settings.json", complaints.append)
    notes = read_tables(folder / "run.json", complaints.append)
    values = {each["path"]: each["value"] for each in settings}
    stages = list(_stages(folder, preset, values, notes, most=most, whole=whole))
    return RunFacts(
        folder,
        str(preset.get("name", folder.name)),
        str(preset.get("description", "")),
        stages,
        values,
        {each["path"]: each["origin"] for each in settings},
        [note for note in notes if "accepted" in note],
        sorted(path.name for path in (folder / "superseded").glob("*")),
        measured_since(folder, [evaluation for stage in stages for evaluation in stage.evaluations], complaints.append),
        complaints,
        folder.absolute().name,
    )


def _preset(folder: Path) -> dict[str, Any]:
    path = folder / "preset.toml"
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        told = f"holds no preset.toml that can be read ({error.strerror})"
        raise RunError(f"{folder}: {told}; give the folder that `zkit run` wrote") from error
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); `zkit run` of the same preset writes it anew") from error


def _stages(
    folder: Path, preset: Mapping[str, Any], values: Mapping[str, Any], notes: Sequence[Mapping[str, Any]], *, most: int, whole: bool
) -> Iterator[StageFacts]:
    before, model = "", {path: value for path, value in values.items() if path.startswith("model.")}
    for name, keys in preset.get("stages", {}).items():
        kind = next((kind for key, kind in OF_KEY.items() if key in keys), None)
        if kind is None:
            continue  # of a version to come
        stage = RunFolder(folder).stage(name)
        table = f"stages.{name}."
        own = {path.removeprefix(table): value for path, value in values.items() if path.startswith(table)}
        sessions = [Session.of(note) for note in notes if note.get("stage") == name and "accepted" not in note]
        yield StageReader(stage, kind, {**model, **own}, _of_this_result(sessions, stage.path), most, whole).read(before)
        before = name if kind == "trains" else before


def _of_this_result(sessions: Sequence[Session], stage: Path) -> list[Session]:
    """Those that worked on what stands there now; where that was not noted, all."""
    if not stage.exists():
        return []
    key = read_table(stage / "key.json", lambda _: None)
    found = None if key is None else digest(without_seal(key))
    return [one for one in sessions if found in (None, one.key) or not one.key]

"""The runs below a folder, read again only where something has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

from zephyr_kit.evaluations import FOLDER, RESULT, cells
from zephyr_kit.facts import RunFacts, StageFacts, differing, read_run
from zephyr_kit.facts.stage import held_locks, is_worked_on
from zephyr_kit.runs import RunError

MARK = "preset.toml"
"""There in the folder of every run."""
DEPTH = 3
"""How far below the folder runs are looked for: those of a sweep lie in a folder of their own."""
NUM_POINTS_LISTED = 20
"""Of a run that is only listed: enough for its newest figures and its speed."""
TELLING = ("run.json", "settings.json", "metrics.jsonl", "done.json", "key.json", "agreement.json", RESULT)
"""Files of a run, and of its stages, that are written when there is something new."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A run as it was when its files were so."""

    version: str
    facts: RunFacts
    changed: float
    """When, in seconds since the epoch."""
    most: int = NUM_POINTS_LISTED
    """So many points, at the most, its curves were read with."""


@dataclass(frozen=True)
class Watch:
    """What stands below a folder; many may ask at once."""

    folder: Path
    _seen: dict[str, Seen] = field(default_factory=dict)
    _read: dict[str, Seen] = field(default_factory=dict)
    """Those whose curves have been asked for, with more points."""
    _lock: Lock = field(default_factory=Lock)

    def runs(self) -> dict[str, Seen]:
        """Every run, by its path below the folder, the one that has changed last first."""
        with self._lock:
            found = {str(run.relative_to(self.folder)): run for run in _runs_below(self.folder, DEPTH)}
            for name in self._seen.keys() - found.keys():
                del self._seen[name]
            locks = held_locks()
            for name, run in found.items():
                with suppress(RunError):  # it is just being made, or removed
                    self._look(name, run, locks)
            return dict(sorted(self._seen.items(), key=lambda one: -one[1].changed))

    def known(self, names: Iterable[str]) -> list[str]:
        """Those of these names that are runs here: nothing else on the disk is ever read."""
        return [name for name in names if name in self._seen]

    def read(self, name: str, most: int) -> RunFacts:
        """A run with so many points in its curves, at the most; read anew where it has changed."""
        seen, known = self._seen[name], self._read.get(name)
        if known is None or (known.version, known.most) != (seen.version, most):
            known = self._read[name] = replace(seen, facts=read_run(seen.facts.folder, most=most, whole=False), most=most)
        return known.facts

    def _look(self, name: str, run: Path, locks: Collection[str]) -> None:
        version, changed = _version(run, locks)
        known = self._seen.get(name)
        if known is None or known.version != version:
            self._seen[name] = Seen(version, read_run(run, most=NUM_POINTS_LISTED, whole=False), changed)


def summary(runs: Mapping[str, Seen]) -> dict[str, Any]:
    """What the page lists: each run with its state and newest figures, and the settings in which they differ."""
    varying = list(differing([seen.facts for seen in runs.values()]))
    told = {}
    for number, (name, seen) in enumerate(runs.items()):
        settings = {each.path: each.values[number] for each in varying if each.values[number] is not None}
        told[name] = {
            "version": seen.version,
            "changed": seen.changed,
            "preset": seen.facts.name,
            "state": state_of(seen.facts),
            "stages": {stage.name: _stage(stage) for stage in seen.facts.stages},
            "settings": settings,
            "measured": cells(seen.facts.evaluations),
            "troubles": [trouble.text for trouble in seen.facts.troubles if trouble.weight == "wrong"],
        }
    return told


def state_of(run: RunFacts) -> str:
    """Of a whole run: that of the stage that is worked on, or that it stopped at."""
    states = [stage.state for stage in run.stages]
    return next((state for state in ("running", "failed", "unfinished") if state in states), "done" if run.is_done else "unfinished")


def _stage(stage: StageFacts) -> dict[str, Any]:
    progress, curves = stage.progress, stage.curves
    names = [*curves.steps, *(f"held_out/{name}" for name in curves.held_out)]
    return {
        "kind": stage.kind,
        "state": stage.state,
        "step": curves.num_steps,
        "progress": progress,
        "seconds_left": curves.seconds * (1 / progress - 1) if stage.state == "running" and progress else None,
        "began": _began(stage),
        "last": {name: curves.last(name) for name in names if not name.endswith("step")},
    }


def _began(stage: StageFacts) -> float | None:
    """When what is running was begun, in seconds since the epoch: all that is known of a stage that counts no steps."""
    with suppress(ValueError, IndexError):
        return datetime.fromisoformat(stage.sessions[-1].began).timestamp() if stage.state == "running" else None
    return None


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / MARK).is_file():
        yield folder
    elif depth:
        for entry in sorted(_folders(folder)):
            yield from _runs_below(Path(entry), depth - 1)


def _folders(folder: Path) -> list[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return []


def _version(run: Path, locks: Collection[str]) -> tuple[str, float]:
    """Stands for the state of a run's files, with the newest time among them."""
    stats = []
    for folder in (str(run), *_folders(run), *_folders(run / FOLDER)):
        for name in TELLING:
            with suppress(OSError):
                stat = os.stat(f"{folder}/{name}")  # noqa: PTH116  thousands of them, each second
                stats.append((folder, name, stat.st_mtime_ns, stat.st_size))
    about = repr((stats, is_worked_on(run, locks)))
    return hashlib.blake2b(about.encode(), digest_size=8).hexdigest(), max((each[2] for each in stats), default=0) / 1e9

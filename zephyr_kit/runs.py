"""The folder of a run.

    RUN/preset.toml            the preset, with the changes of the command line
    RUN/settings.json          every resolved value, and where it came from
    RUN/run.json               each time a stage was worked on: versions, machine, time, how it ended; changes that were accepted
    RUN/report.html            what is known of it on one page; report.md is the same as text
    RUN/STAGE/key.json         what the stage's result depends on
    RUN/STAGE/files.json       the files of its data, with digests: to tell which has changed
    RUN/STAGE/data.json        what became of every row (and quarantine.jsonl, lengths.json beside it)
    RUN/STAGE/broken_laws.json where its objective says that it breaks some
    RUN/STAGE/metrics.jsonl    a line for each step, and for each look at held-out data
    RUN/STAGE/tracked.txt      the name by which trackers find the stage's run again
    RUN/STAGE/checkpoints/     to go on from
    RUN/STAGE/model/           the result, in Hugging Face format
    RUN/STAGE/data/            the result of a stage that gathers: lines of JSON
    RUN/STAGE/done.json        there when the stage has ended
    RUN/superseded/            stages that were run again, as they were
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from zephyr_kit import ZkitError
from zephyr_kit.disk import DiskError, sync
from zephyr_kit.fingerprint import file_digest, files_ending
from zephyr_kit.records import as_json, differences, read_json, read_sealed, sealed, write_json

BROKEN_LAWS, FILES = "broken_laws.json", "files.json"
MEND = "remove the folder it is in to run that stage again"
SECONDS_BETWEEN_TRIES = 0.1
"""To lock a folder."""


class RunError(ZkitError):
    """A run folder that cannot be used."""


@dataclass(frozen=True, slots=True)
class StageFolder:
    """The files of one stage."""

    path: Path

    @property
    def model(self) -> Path:
        """The result, in Hugging Face format."""
        return self.path / "model"

    @property
    def data(self) -> Path:
        """The result of a stage that gathers: lines of JSON."""
        return self.path / "data"

    @property
    def metrics(self) -> Path:
        """A line for each step."""
        return self.path / "metrics.jsonl"

    @property
    def tracked(self) -> Path:
        """The name by which trackers find it again, if any has seen it."""
        return self.path / "tracked.txt"

    @property
    def checkpoints(self) -> Path:
        """To go on from."""
        return self.path / "checkpoints"

    def done(self) -> dict[str, Any] | None:
        """What the stage left behind when it ended; None if it has not."""
        return _read(self.path / "done.json", "remove it, and the stage is ended anew, from its last checkpoint where there is one")

    def is_done(self, key: Mapping[str, Any]) -> bool:
        """Whether a result stands here that was made for this very key."""
        return self.has_result and self.done() is not None and self.key() == as_json(key)

    @property
    def is_begun(self) -> bool:
        """Whether a step has been taken, or a result is there."""
        has_steps = self.metrics.exists() and self.metrics.stat().st_size > 0
        return self.has_result or has_steps or any(self.checkpoints.glob("step-*"))

    @property
    def has_result(self) -> bool:
        """Whether a model, or gathered data, is there."""
        return self.model.is_dir() or self.data.is_dir()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Mark the stage as ended; remember the content of what it made. The mark is on the disk after all that it stands for."""
        for path in self.path.iterdir():
            sync(path)
        write_json(self.path / "done.json", sealed({**facts, "files": self._files()}))

    def damage(self) -> str | None:
        """What has happened to the result since the stage ended; None if nothing, or if it has not ended."""
        done = self.done()
        found = self._files() if done is not None else {}
        for name, digest in (done or {}).get("files", {}).items():
            if found.get(name) != digest:
                return f"{name} {'has changed' if name in found else 'is missing'}"
        return None

    def reopen(self) -> None:
        """Take the mark away, so that the stage ends again, from its last checkpoint if that is there."""
        (self.path / "done.json").unlink()

    def _files(self) -> dict[str, str]:
        """Digests of the files that make up the result, read anew: rot changes no time. A model's card may be edited."""
        endings = {self.model: (".safetensors", ".json", ".jinja"), self.data: (".jsonl",)}
        return {
            f"{folder.name}/{file.name}": file_digest(file)
            for folder, ending in endings.items()
            if folder.is_dir()
            for file in files_ending(folder, ending)
        }

    def files_of(self, table: str) -> dict[str, str] | None:
        """The files of a table of data, `data[0]`, say, with digests, as they were when the stage was last opened; None if not known."""
        found: dict[str, str] | None = (_read(self.path / FILES) or {}).get(table)
        return found

    def rows_of(self, table: str) -> int | None:
        """How many rows were read of it; None if not known."""
        name, _, number = table.removesuffix("]").partition("[")
        with suppress(ZkitError, OSError, LookupError, TypeError):
            return int(read_json(self.path / f"{name}.json", MEND)["portions"][int(number)]["read"])
        return None

    def key(self) -> dict[str, Any] | None:
        """What the stage's result depends on, as it was when the stage began."""
        return _read(self.path / "key.json")


@dataclass(frozen=True, slots=True)
class Opened:
    """A stage's folder, ready to be worked in."""

    stage: StageFolder
    differing: Sequence[str]
    """Where the key differs from that of what stood there, and is on the shelf now."""
    taken_back: bool
    """Whether the very same stage was found on the shelf."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run."""

    path: Path
    pool: Path | None = None
    """A folder of other runs, whose finished stages may be taken over."""

    def stage(self, name: str) -> StageFolder:
        """The folder of one stage."""
        return StageFolder(self.path / name)

    def open_stage(self, name: str, key: Mapping[str, Any]) -> Opened:
        """The stage's folder for this key: the one that stands, one from the shelf, or a new one."""
        stage = self.stage(name)
        key = as_json(key)
        before = stage.key()
        if before is None and stage.is_begun:
            raise RunError(f"{stage.path / 'key.json'}: missing, so what the stage was made from is not known; restore it, or {MEND}")
        reasons: list[str] = []
        if before is not None and before != key:
            reasons = differences(before, key)
            self._supersede(stage)
        taken_back = not stage.path.exists() and self._take_back(stage, key)
        stage.path.mkdir(parents=True, exist_ok=True)
        sync(self.path)
        write_json(stage.path / "key.json", sealed(key))
        return Opened(stage, reasons, taken_back)

    def take_over(self, name: str, key: Mapping[str, Any]) -> Path | None:
        """Where nothing stands yet: the stage as another run of the pool has finished it by this very key; where that was."""
        stage, key = self.stage(name), as_json(key)
        if self.pool is None or stage.is_begun:
            return None
        places = (found.parent for found in sorted(self.pool.glob(f"*/{name}/done.json")))
        place = next((place for place in places if StageFolder(place).is_done(key)), None)
        if place is not None:
            shutil.rmtree(stage.path, ignore_errors=True)
            _twin(StageFolder(place), self.path / f".{name}").rename(stage.path)
            sync(self.path)
        return place

    def set_aside(self, name: str) -> None:
        """Make room for a stage that is to be made anew."""
        if (self.path / name).exists():
            self._supersede(self.stage(name))

    @contextmanager
    def locked(self, *, patience: float = 0.0) -> Iterator[None]:
        """Keep other processes out while this one works in the folder; wait so many seconds for one that is about to end."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise DiskError(f"{self.path}: cannot be written to: {error.strerror}; choose another folder with --output") from error
        with lock:
            until = time.monotonic() + patience
            while not _taken(lock):
                if time.monotonic() >= until:
                    raise RunError(f"{self.path}: another zkit works in this folder; wait for it, or choose another with --output")
                time.sleep(SECONDS_BETWEEN_TRIES)
            yield

    def _supersede(self, stage: StageFolder) -> None:
        if not stage.is_begun:
            shutil.rmtree(stage.path)
            return
        self._shelf.mkdir(exist_ok=True)
        numbers = [int(place.name.rpartition("-")[2]) for place in self._shelf.glob(f"{stage.path.name}-*")]
        stage.path.rename(self._shelf / f"{stage.path.name}-{max(numbers, default=0) + 1}")

    def _take_back(self, stage: StageFolder, key: Mapping[str, Any]) -> bool:
        """Put a superseded stage back in its place when it is the very one that is asked for."""
        for place in self._shelf.glob(f"{stage.path.name}-*"):
            if StageFolder(place).key() == key:
                place.rename(stage.path)
                return True
        return False

    @property
    def _shelf(self) -> Path:
        return self.path / "superseded"


def _taken(lock: IO[str]) -> bool:
    """Whether a file could be locked."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _twin(stage: StageFolder, staging: Path) -> Path:
    """A finished stage in another folder. Its result takes no room twice, where the file system has links: it is never written into."""
    shutil.rmtree(staging, ignore_errors=True)
    result = [folder for folder in (stage.model, stage.data) if folder.is_dir()]
    left = {stage.checkpoints.name, stage.tracked.name, *(folder.name for folder in result)}
    shutil.copytree(stage.path, staging, ignore=lambda folder, _: left if folder == str(stage.path) else ())
    for folder in result:
        shutil.copytree(folder, staging / folder.name, copy_function=_link)
    return staging


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _read(path: Path, mend: str = MEND) -> dict[str, Any] | None:
    return read_sealed(path, mend) if path.exists() else None

"""Checkpoints that are whole or are not there.

A checkpoint is a folder `step-00000120` of files and `manifest.json`, which holds the checksum of
each, its own, the step, and what the run depends on. It is written beside its place, hashed on the
way, synced to the disk, and renamed; while training, by a thread beside it. No file is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zephyr_kit.disk import Checksum, checksum, put, refuse_special, sync, write_hashed
from zephyr_kit.shares import Joined, local, share_of
from zephyr_kit.tensor_file import pieces
from zephyr_kit.world import World

TENSORS, FACTS, MANIFEST = "state.safetensors", "state.json", "manifest.json"
NOTE = ".checksum"
"""How the file ends in which a rank tells the leader that its share is written."""
SECONDS_BETWEEN_LOOKS = 0.02
FORMAT = 2


class CheckpointError(ValueError):
    """What is wrong with a checkpoint."""


@dataclass(frozen=True, slots=True)
class State:
    """All that a stage needs to go on."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def on_host(self, *, leads: bool = True, copied: bool = True) -> State:
        """What this rank is to write: its shares, and what is whole if it leads; copied, in a way that training does not change.

        Each tensor in storage of its own: bitsandbytes shares a table among all its states, which would change with any of them.
        """
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            share = share_of(tensor)
            if leads if share is None else not share.is_copy:
                tensors[name if share is None else share.named(name)] = local(tensor).detach().to("cpu", copy=copied).contiguous()
        return State(self.step, tensors, dict(self.facts))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is of, and what it is made up of."""

    step: int
    run: Mapping[str, Any]
    """What the run depends on: the key of its stage."""
    files: Mapping[str, Checksum]

    def text(self) -> str:
        """As it stands in the file, its own checksum included."""
        facts = {"format": FORMAT, "step": self.step, "run": self.run, "files": {name: asdict(each) for name, each in self.files.items()}}
        digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return json.dumps({**facts, "blake2b": digest}, indent=1, sort_keys=True)

    @staticmethod
    def read(path: Path) -> Manifest:
        """From its file, every byte of which must be as it was written."""
        refuse_special(path)
        text = path.read_text("utf-8")
        facts = json.loads(text)
        if facts["format"] != FORMAT:
            raise CheckpointError(f"{path.name} is of format {facts['format']}, not {FORMAT}")
        manifest = Manifest(facts["step"], facts["run"], {name: Checksum(**each) for name, each in facts["files"].items()})
        if manifest.text() != text:
            raise CheckpointError(f"{path.name} does not match its checksum")
        return manifest


@dataclass(frozen=True, slots=True)
class Begun:
    """A checkpoint that is about to be written."""

    state: State
    """What this rank is to write."""
    staging: Path
    writers: list[int]
    """The ranks that have tensors to write; the leader, which writes all else, is the first."""

    def write_share(self, rank: int) -> None:
        """Write what this rank alone has, and then its checksum, for the leader."""
        if rank in self.writers:
            file = self.staging / self._file(rank)
            written = write_hashed(file, pieces(self.state.tensors))
            half = file.with_suffix(".part")  # the leader must not read it before it is whole
            write_hashed(half, [json.dumps(asdict(written)).encode()])
            half.rename(file.with_suffix(NOTE))

    def write_tensors(self, world: World) -> dict[str, Checksum]:
        """Write the leader's tensors, and wait for those of the others; the checksums of all."""
        files = {self._file(0): write_hashed(self.staging / self._file(0), pieces(self.state.tensors))}
        for rank in self.writers[1:]:
            note = (self.staging / self._file(rank)).with_suffix(NOTE)
            while not note.exists():
                world.refuse_broken(note.exists)
                time.sleep(SECONDS_BETWEEN_LOOKS)
            files[self._file(rank)] = Checksum(**json.loads(note.read_text("utf-8")))
            note.unlink()
        return files

    def _file(self, rank: int) -> str:
        count = len(self.writers)
        return TENSORS if count == 1 else f"state-{self.writers.index(rank) + 1:05d}-of-{count:05d}.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one stage."""

    folder: Path
    keep: int = 2
    run: Mapping[str, Any] | None = None
    """What the run depends on, in JSON values; checkpoints of another run are not used, if it is given."""
    beside: tuple[Path, ...] = ()
    """Files that must be on the disk when a checkpoint is."""
    worth: Callable[[], Mapping[int, float]] | None = None
    """How good steps are, the more the better: the best of the checkpoints is kept besides the last ones."""
    world: World = field(default_factory=World)
    """The ranks that save together: each writes what only it has, and the leader all else."""

    def save(self, state: State) -> Path:
        """Write a checkpoint, and wait for it."""
        return self.write(self._begun(state, copied=False))

    @contextmanager
    def saving(self) -> Iterator[Callable[..., None]]:
        """A `save` that returns when the state is on the host, as a copy if training `goes_on` while it is written.

        One at a time: the next waits for the one before, and raises what went wrong with it. So does the
        end of the context; if it ends with an exception, it waits all the same, and that one is raised.
        """
        waiting: list[Future[Path]] = []

        def save(state: State, *, goes_on: bool = True) -> None:
            while waiting:
                waiting.pop().result()
            waiting.append(writer.submit(self.write, self._begun(state, copied=goes_on)))

        with ThreadPoolExecutor(1, "zkit-checkpoint") as writer:
            yield save
        for written in waiting:
            written.result()

    def write(self, begun: Begun) -> Path:
        """Write a state that is on the host; then remove later ones, which are of no use, and those that are not to be kept."""
        place, staging = self.folder / _name(begun.state.step), begun.staging
        if not self.world.leads:
            begun.write_share(self.world.rank)
            return place
        try:
            self._write(begun)
            _remove(place)
            put(staging, place)
        except Exception:
            # On a full disk, also where another rank has found it full, what is half written is in the way of all else.
            shutil.rmtree(staging, ignore_errors=True)  # why it is removed is what is to be told
            raise
        sync(self.folder.parent)
        self._prune(begun.state.step)
        return place

    def _begun(self, state: State, *, copied: bool) -> Begun:
        """What this rank is to write, and a folder for it, which all ranks know when this returns."""
        own = state.on_host(leads=self.world.leads, copied=copied)
        staging = self.folder / f".{_name(state.step)}.{os.getpid()}"
        if self.world.leads:
            self.clean()
            staging.mkdir(parents=True)
        told = self.world.gather([staging.name, bool(own.tensors)])
        return Begun(own, self.folder / told[0][0], [rank for rank, (_, writes) in enumerate(told) if writes or rank == 0])

    def _write(self, begun: Begun) -> None:
        facts = json.dumps(dict(begun.state.facts), sort_keys=True)
        files = {**begun.write_tensors(self.world), FACTS: write_hashed(begun.staging / FACTS, [facts.encode()])}
        write_hashed(begun.staging / MANIFEST, [Manifest(begun.state.step, self.run or {}, files).text().encode()])
        for path in self.beside:
            sync(path)

    def newest(self) -> tuple[State | None, list[str]]:
        """The newest checkpoint that is whole, and what is wrong with newer ones; the leader looks for all ranks."""
        state, remarks = self._newest() if self.world.leads else (None, [])
        step = self.world.word(None if state is None else state.step)
        if not self.world.leads and step is not None:
            place = self.folder / _name(step)
            state = _load(place, Manifest.read(place / MANIFEST))
        return state, remarks

    def _newest(self) -> tuple[State | None, list[str]]:
        remarks: list[str] = []
        for place in self._places():
            try:
                return read(place, self.run), remarks
            except CheckpointError as error:
                remarks.append(f"checkpoint {place.name} is not used: {error}")
        return None, remarks

    def best(self) -> int | None:
        """The best of the steps that have a checkpoint; None if that is not known of any."""
        worth = self.worth() if self.worth is not None else {}
        known = {step: worth[step] for place in self._places() if (step := _step(place)) in worth}
        return max(known, key=lambda step: known[step], default=None)

    def clean(self) -> None:
        """Remove what a killed process left half written."""
        for leftover in self.folder.glob(".step-*"):
            _remove(leftover)

    def _prune(self, step: int) -> None:
        # A later one was found damaged, or training would have gone on from there.
        for later in [place for place in self._places() if place.name > _name(step)]:
            _remove(later)
        best = self.best()
        for older in list(self._places())[self.keep :]:
            if best is None or older.name != _name(best):
                _remove(older)

    def _places(self) -> Iterator[Path]:
        return iter(sorted(self.folder.glob("step-*"), reverse=True))


def read(place: Path, run: Mapping[str, Any] | None = None) -> State:
    """Read a checkpoint, verifying every byte of it, and that it is of this run if that is given."""
    try:
        manifest = Manifest.read(place / MANIFEST)
        _verify(place, manifest)
        if run is not None and manifest.run != run:
            raise CheckpointError("it is of another run: what that depends on is not the same")
        return _load(place, manifest)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{type(error).__name__}: {error}") from error


def _load(place: Path, manifest: Manifest) -> State:
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for name in manifest.files:
        if name.endswith(".safetensors"):
            tensors.update(load_file(place / name))
        else:
            facts.update(json.loads((place / name).read_text("utf-8")))
    return State(manifest.step, Joined(tensors), facts)


def _verify(place: Path, manifest: Manifest) -> None:
    if place.name != _name(manifest.step):
        raise CheckpointError(f"it is of step {manifest.step}")
    found, expected = {path.name for path in place.iterdir()}, {*manifest.files, MANIFEST}
    if found != expected:
        raise CheckpointError(_odd(expected - found, found - expected))
    for name, written in manifest.files.items():
        if checksum(place / name) != written:
            raise CheckpointError(f"{name} does not match its checksum")


def _odd(missing: set[str], extra: set[str]) -> str:
    told = ((missing, "missing"), (extra, "does not belong there"))
    return "; ".join(f"{', '.join(sorted(names))} {what}" for names, what in told if names)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(place: Path) -> int:
    digits = place.name.partition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _remove(place: Path) -> None:
    """Remove a checkpoint, or whatever stands in its place."""
    if place.is_dir() and not place.is_symlink():
        # Out of sight first: what is half removed must not be taken for a damaged checkpoint.
        hidden = place if place.name.startswith(".") else place.rename(place.with_name(f".{place.name}.gone"))
        shutil.rmtree(hidden)
    else:
        place.unlink(missing_ok=True)

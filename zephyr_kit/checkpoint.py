"""Checkpoints that are whole or are not there.

A checkpoint is a folder `step-00000120` with `state.safetensors`, `state.json` and
`manifest.json`, which holds the digests of the other two. It is written beside its place,
synced to the disk, and renamed; while training, by a thread beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS, FACTS, MANIFEST = "state.safetensors", "state.json", "manifest.json"


class CheckpointError(ValueError):
    """What is wrong with a checkpoint."""


@dataclass(frozen=True, slots=True)
class State:
    """All that a stage needs to go on."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def on_host(self) -> State:
        """A copy that training does not change, each tensor in storage of its own.

        bitsandbytes shares a table among all its states, which safetensors refuses.
        """
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.tensors.items()}
        return State(self.step, tensors, dict(self.facts))


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one stage."""

    folder: Path
    keep: int = 2

    def save(self, state: State) -> Path:
        """Write a checkpoint, and wait for it."""
        return self.write(state.on_host())

    @contextmanager
    def saving(self) -> Iterator[Callable[[State], None]]:
        """A `save` that returns when the state is copied to the host; it is written while training goes on.

        One at a time: the next waits for the one before, and raises what went wrong with it. So does the
        end of the context; if it ends with an exception, it waits all the same, and that one is raised.
        """
        waiting: list[Future[Path]] = []

        def save(state: State) -> None:
            while waiting:
                waiting.pop().result()
            waiting.append(writer.submit(self.write, state.on_host()))

        with ThreadPoolExecutor(1, "zkit-checkpoint") as writer:
            yield save
        for written in waiting:
            written.result()

    def write(self, state: State) -> Path:
        """Write a state that is on the host; then remove later ones, which are of no use, and all but the last `keep`."""
        place = self.folder / f"step-{state.step:08d}"
        staging = self.folder / f".{place.name}.{os.getpid()}"
        self.clean()
        staging.mkdir(parents=True)
        save_file(dict(state.tensors), staging / TENSORS)
        (staging / FACTS).write_text(json.dumps({"step": state.step, **state.facts}, sort_keys=True), "utf-8")
        manifest = {name: _digest(staging / name) for name in (TENSORS, FACTS)}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
        for path in (*staging.iterdir(), staging):
            sync(path)
        _remove(place)
        staging.rename(place)
        sync(self.folder)
        # A later one was found damaged, or training would have gone on from there.
        later, kept = [p for p in self._places() if p.name > place.name], [p for p in self._places() if p.name <= place.name]
        for useless in (*later, *kept[self.keep :]):
            _remove(useless)
        return place

    def newest(self) -> tuple[State | None, list[str]]:
        """The newest checkpoint that is whole, and what is wrong with newer ones."""
        remarks: list[str] = []
        for place in self._places():
            try:
                return read(place), remarks
            except CheckpointError as error:
                remarks.append(f"checkpoint {place.name} is not used: {error}")
        return None, remarks

    def clean(self) -> None:
        """Remove what a killed process left half written."""
        for leftover in self.folder.glob(".step-*"):
            _remove(leftover)

    def _places(self) -> Iterator[Path]:
        return iter(sorted(self.folder.glob("step-*"), reverse=True))


def read(place: Path) -> State:
    """Read a checkpoint, verifying every byte of it."""
    try:
        found = {path.name for path in place.iterdir()}
        if found != {TENSORS, FACTS, MANIFEST}:
            raise CheckpointError(_odd(found))
        manifest = json.loads((place / MANIFEST).read_text("utf-8"))
        for name in (TENSORS, FACTS):
            if manifest.get(name) != _digest(place / name):
                raise CheckpointError(f"{name} does not match its digest")
        facts = json.loads((place / FACTS).read_text("utf-8"))
        return State(facts.pop("step"), load_file(place / TENSORS), facts)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{type(error).__name__}: {error}") from error


def sync(path: Path) -> None:
    """Force a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _odd(found: set[str]) -> str:
    expected = {TENSORS, FACTS, MANIFEST}
    missing, extra = sorted(expected - found), sorted(found - expected)
    return "; ".join(f"{', '.join(names)} {what}" for names, what in ((missing, "missing"), (extra, "does not belong there")) if names)


def _remove(place: Path) -> None:
    """Remove a checkpoint, or whatever stands in its place."""
    if place.is_dir() and not place.is_symlink():
        # Out of sight first: what is half removed must not be taken for a damaged checkpoint.
        hidden = place if place.name.startswith(".") else place.rename(place.with_name(f".{place.name}.gone"))
        shutil.rmtree(hidden)
    else:
        place.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()

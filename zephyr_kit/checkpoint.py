"""Checkpoints that are whole or are not there.

A checkpoint is a folder `step-00000120` with `state.safetensors`, `state.json` and
`manifest.json`, which holds the size and the digest of the other two. It is written beside
its place, synced to the disk, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one stage."""

    folder: Path
    keep: int = 2

    def save(self, state: State) -> Path:
        """Write a checkpoint, and remove those that are older than the last `keep`."""
        place = self.folder / f"step-{state.step:08d}"
        staging = self.folder / f".{place.name}.{os.getpid()}"
        self.clean()
        staging.mkdir(parents=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}, staging / TENSORS)
        (staging / FACTS).write_text(json.dumps({"step": state.step, **state.facts}), "utf-8")
        manifest = {name: _digest(staging / name) for name in (TENSORS, FACTS)}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
        for path in (*staging.iterdir(), staging):
            sync(path)
        if place.exists():
            shutil.rmtree(place)
        staging.rename(place)
        sync(self.folder)
        for old in list(self._places())[self.keep :]:
            shutil.rmtree(old)
        return place

    def newest(self) -> tuple[State | None, list[str]]:
        """The newest checkpoint that is whole, and what is wrong with newer ones."""
        remarks = []
        for place in self._places():
            try:
                return read(place), remarks
            except CheckpointError as error:
                remarks.append(f"checkpoint {place.name} is not used: {error}")
        return None, remarks

    def clean(self) -> None:
        """Remove what a killed process left half written."""
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover)

    def _places(self) -> Iterator[Path]:
        return iter(sorted(self.folder.glob("step-*"), reverse=True))


def read(place: Path) -> State:
    """Read a checkpoint, verifying every byte of it."""
    try:
        manifest = json.loads((place / MANIFEST).read_text("utf-8"))
        for name in (TENSORS, FACTS):
            if manifest[name] != _digest(place / name):
                raise CheckpointError(f"{name} does not match its digest")
        facts = json.loads((place / FACTS).read_text("utf-8"))
        return State(facts.pop("step"), load_file(place / TENSORS), facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(str(error)) from error


def sync(path: Path) -> None:
    """Force a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()

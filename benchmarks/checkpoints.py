"""The share of a real run's seconds that checksums and syncs of its checkpoints take, as if training waited for all of them."""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from benchmarks.measure import apart, report
from zephyr_kit.cache import cache_folder

PRESET = Path(__file__).parents[1] / "presets" / "quickstart.toml"
OTHERS = ("sft", "feedback", "dpo", "evaluate")
PACKAGES = ("torch", "transformers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How often the run saves."""
    parser.add_argument("--checkpoint-every", type=int, nargs="+", default=[250, 50], help="steps (default: those of the preset, and 50)")


def run(given: argparse.Namespace) -> None:
    """Train the first stage of the quickstart, its pace of checkpoints changed."""
    home = cache_folder("benchmarks")
    rows = [apart(train, every, folder=home, processors=given.processors) for every in given.checkpoint_every]
    report("checkpoints", rows, processors=given.processors, packages=PACKAGES)


def train(checkpoint_every: int) -> dict[str, Any]:
    """One run, and the seconds of which it is made."""
    from zephyr_kit.checkpoint import Checkpoints

    with tempfile.TemporaryDirectory(prefix="zkit-checkpoints-") as folder, _timed() as seconds:
        changes = [f"stages.base.train.checkpoint_every={checkpoint_every}", *(f"stages.{stage}=false" for stage in OTHERS)]
        arguments = ["run", str(PRESET), "--output", f"{folder}/run", "--device", "cpu", "--devices", "1"]
        with mock.patch.object(Checkpoints, "write", _counted(Checkpoints.write, seconds, "writing")):
            begun = time.perf_counter()
            _run([*arguments, *(word for change in changes for word in ("--set", change))])
            whole = time.perf_counter() - begun
        newest = max(Path(folder, "run", "base", "checkpoints").glob("step-*"))
        size = sum(file.stat().st_size for file in newest.iterdir())
    return {
        "a checkpoint every": checkpoint_every,
        "bytes of one": size,
        "seconds": round(whole, 1),
        **{f"seconds {what}": round(spent, 3) for what, spent in seconds.items()},
        "checksums and syncs": round((seconds["hashing"] + seconds["syncing"]) / whole, 5),
    }


def _run(arguments: list[str]) -> None:
    from zephyr_kit.cli import main

    try:
        main(arguments)
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"zkit {' '.join(arguments)} ended with {ended.code}") from ended


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    seconds: dict[str, float] = {}

    def digest() -> Any:
        found = hashlib.blake2b()
        return SimpleNamespace(update=_counted(found.update, seconds, "hashing"), hexdigest=found.hexdigest)

    hashes = SimpleNamespace(blake2b=digest, file_digest=_counted(hashlib.file_digest, seconds, "hashing"))
    with mock.patch("zephyr_kit.disk.hashlib", hashes), mock.patch.object(os, "fsync", _counted(os.fsync, seconds, "syncing")):
        yield seconds


def _counted(work: Any, seconds: dict[str, float], what: str) -> Any:
    def counted(*given: Any) -> Any:
        begun = time.perf_counter()
        try:
            return work(*given)
        finally:
            seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - begun

    return counted

"""Seconds from `zkit run PRESET` to the end of its first step, when the data and the reference scores are known."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import tomli_w

from benchmarks.cases import Case, prepare
from benchmarks.measure import ZKIT, apart, report
from benchmarks.models import SHAPES
from benchmarks.training import PACKAGES
from benchmarks.workloads import WORKLOADS
from zephyr_kit.cache import cache_folder

SECONDS_BETWEEN_LOOKS = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is started, and how often."""
    parser.add_argument("--model", choices=SHAPES, default="37m", help="default: %(default)s")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["arena", "chat"])
    parser.add_argument("--runs", type=int, default=3, help="after the first one (default: %(default)s)")


def run(given: argparse.Namespace) -> None:
    """Run a preset of one step once, so that all is prepared, then again and again in new folders."""
    home = cache_folder("benchmarks")
    rows = []
    for workload in given.workload:
        case = Case(given.model, "full", workload, 1, home)
        apart(prepare, case, folder=home, processors=given.processors)
        with tempfile.TemporaryDirectory(prefix="zkit-start-") as folder:
            preset = Path(folder) / "start.toml"
            preset.write_text(tomli_w.dumps(case.preset()), "utf-8")
            outputs = (Path(folder) / f"run-{number}" for number in range(given.runs + 1))
            first, *again = (apart(_seconds, preset, output, folder=home, processors=given.processors) for output in outputs)
        figures = {"seconds, the first time": first, "seconds, again": round(median(again), 2)}
        rows.append({"workload": workload, "model": given.model, **figures})
    report("start", rows, processors=given.processors, packages=PACKAGES)


def _seconds(preset: Path, output: Path) -> float:
    """Until the first line of metrics stands in the folder of the stage."""
    metrics = output / "train" / "metrics.jsonl"
    begun = time.perf_counter()
    command = [ZKIT, "run", str(preset), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603  our own command
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
            raise SystemExit(f"zkit run {preset} ended with {process.returncode} and no metrics")
        time.sleep(SECONDS_BETWEEN_LOOKS)
    seconds = time.perf_counter() - begun
    process.wait()
    return round(seconds, 2)

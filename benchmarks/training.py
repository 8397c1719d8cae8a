"""Speed and memory of training on a CPU, beside trl: each run in a fresh process, ours and theirs by turns."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ours, table, theirs
from benchmarks.cases import Case, Work, prepare
from benchmarks.measure import RESULTS, apart, surroundings
from benchmarks.models import SHAPES
from benchmarks.plot import plot
from benchmarks.trace import Trace, Watch
from benchmarks.workloads import WORKLOADS
from zephyr_kit.cache import cache_folder
from zephyr_kit.cli.allocator import NAME, SETTINGS
from zephyr_kit.sizes import GIB

OURS = "zephyr-kit"
PACKAGES = ("numpy", "peft", "torch", "transformers", "trl")
KEY = ("model", "method", "workload", "allocator", "dtype", "device")
"""What tells one cell of the results from another."""
MAX_DIFFERENCE = 1e-3
"""Of the loss of a step, as a share of it; more is no comparison."""
ALLOCATORS: Mapping[str, Mapping[str, str]] = {
    "kept": {NAME: SETTINGS},
    "glibc": {},
}
"""Whether freed memory stays with the process, or glibc gives large blocks back to the system, which has to clear them anew."""
FULL_SIZE: Mapping[str, Any] = {
    "model": ["37m"],
    "workload": list(WORKLOADS),
    "method": ["full", "lora"],
    "allocator": list(ALLOCATORS),
    "runs": 5,
    "steps": 6,
    "results": RESULTS,
}
QUICK: Mapping[str, Any] = {
    **FULL_SIZE,
    "model": ["5m"],
    "workload": ["arena", "chat"],
    "setting": ["precomputed reference", "packing"],
    "allocator": ["kept"],
    "runs": 1,
    "steps": 3,
    "results": Path("runs/benchmarks"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured; what is not given is as in `FULL_SIZE`, or in `QUICK`."""
    parser.add_argument("--quick", action="store_true", help=_told(QUICK))
    parser.add_argument("--model", nargs="+", choices=SHAPES, help=f"without --quick: {_told(FULL_SIZE)}")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS)
    parser.add_argument("--method", nargs="+", choices=("full", "lora"))
    parser.add_argument("--setting", nargs="+", choices=[*itertools.chain(*theirs.SETTINGS.values())], help="only these of trl's")
    parser.add_argument("--allocator", nargs="+", choices=ALLOCATORS, help="whether freed memory is kept, or left to glibc's defaults")
    parser.add_argument("--runs", type=int, help="of each side, by turns")
    parser.add_argument("--steps", type=int, help="of each run; the first is not timed")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where the table is kept, and added to")


def run(given: argparse.Namespace) -> None:
    """Measure every combination; the table and the plot show them with those measured before."""
    for name, value in (QUICK if given.quick else FULL_SIZE).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    home = cache_folder("benchmarks")
    for model, workload, method in itertools.product(given.model, given.workload, given.method):
        case = Case(model, method, workload, given.steps, home)
        work, num_tokens = apart(prepare, case, folder=home, processors=given.processors)
        for allocator in given.allocator:
            print(f"{model} {method} {workload} {allocator}: {given.runs} runs of {given.steps} steps of each side", flush=True)  # noqa: T201
            cell = _cell(case, allocator, _alternate(case, work, allocator, given), num_tokens)
            _tell(cell)
            _keep(given.results, {**cell, "surroundings": surroundings(given.processors, PACKAGES)})
    cells = json.loads((given.results / "training.json").read_text("utf-8"))
    print(table.write_table(cells, given.results / "training.md"))  # noqa: T201
    plot(cells, given.results / "training.png")


def _told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {' '.join(value) if isinstance(value, list) else value}" for name, value in settings.items())


def measure(case: Case, work: Work, side: str) -> Trace:
    """One run of one side, in the process that calls it."""
    watch = Watch()
    if side == OURS:
        return ours.train(case, work, watch)
    return theirs.train(case, work, side.removeprefix("trl, "), watch)


def _alternate(case: Case, work: Work, allocator: str, given: argparse.Namespace) -> dict[str, list[Trace]]:
    """All runs by side: ours, theirs, ours, theirs …, so that a machine's moods meet both."""
    settings = [setting for setting in theirs.SETTINGS[case.objective] if given.setting is None or setting in given.setting]
    sides = [OURS, *(f"trl, {setting}" for setting in settings)]
    traces: dict[str, list[Trace]] = {side: [] for side in sides}
    for _ in range(given.runs):
        for side in sides:
            traces[side].append(
                apart(measure, case, work, side, folder=case.home, processors=given.processors, environment=ALLOCATORS[allocator])
            )
    return traces


def _cell(case: Case, allocator: str, traces: Mapping[str, Sequence[Trace]], num_tokens: Sequence[int]) -> dict[str, Any]:
    """Medians of the runs, and what theirs are to ours."""
    own = _figures(traces[OURS], num_tokens)
    sides = {OURS: own}
    for side, runs in traces.items():
        if side != OURS:
            figures = _figures(runs, num_tokens)
            sides[side] = {**figures, **_compared(own, figures)}
            if sides[side]["largest difference of a loss"] > MAX_DIFFERENCE:
                raise SystemExit(f"{case.model}, {case.method}, {case.workload}: the losses of {side} are not ours: {sides[side]}, {own}")
    key = {**{name: getattr(case, name) for name in KEY if name != "allocator"}, "allocator": allocator}
    return {**key, "runs": len(traces[OURS]), "real tokens of each step": num_tokens, "sides": sides}


def _figures(runs: Sequence[Trace], num_tokens: Sequence[int]) -> dict[str, Any]:
    return {
        "tokens a second": round(median(run.rate(num_tokens) for run in runs), 1),
        "tokens a processor second": round(median(run.processor_rate(num_tokens) for run in runs), 1),
        "peak GiB": round(median(run.peak for run in runs) / GIB, 3),
        "GiB at the start": round(median(run.start for run in runs) / GIB, 3),
        "seconds to the first step": round(median(run.first_step for run in runs), 2),
        "losses": runs[0].losses,
        "gradient norms": runs[0].norms,
    }


def _compared(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What ours is to theirs."""
    return {
        "times as fast": round(own["tokens a second"] / other["tokens a second"], 2),
        "times as fast by processor time": round(own["tokens a processor second"] / other["tokens a processor second"], 2),
        "share of its memory": round(own["peak GiB"] / other["peak GiB"], 3),
        "largest difference of a loss": _difference(own["losses"], other["losses"]),
        "largest difference of a gradient norm": _difference(own["gradient norms"], other["gradient norms"]),
    }


def _difference(ones: Sequence[float], others: Sequence[float]) -> float:
    return float(f"{max(abs(one - other) / abs(other) for one, other in zip(ones, others, strict=True)):.1e}")


def _tell(cell: Mapping[str, Any]) -> None:
    """A line, for measurements take long."""
    what = " ".join(cell[name] for name in KEY)
    fastest = table.fastest(cell)
    print(f"{what}: {fastest['times as fast']} times as fast, {fastest['share of its memory']} of the memory", flush=True)  # noqa: T201


def _keep(results: Path, cell: Mapping[str, Any]) -> None:
    """Add a cell to the results, in place of the same one."""
    results.mkdir(parents=True, exist_ok=True)
    path = results / "training.json"
    cells = json.loads(path.read_text("utf-8")) if path.exists() else []
    kept = [other for other in cells if any(other[key] != cell[key] for key in KEY)]
    path.write_text(json.dumps([*kept, cell], indent=1, ensure_ascii=False) + "\n", "utf-8")

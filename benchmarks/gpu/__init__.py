"""Speed and memory of training on one GPU, beside trl: a 7 B model of random weights; as much as eight minutes hold."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.cells import KINDS
from benchmarks.gpu.plot import plot
from benchmarks.gpu.results import Results, write
from benchmarks.gpu.runs import OURS, OURS_BY_UNSLOTH, TRL, TRL_PAIRS, TRL_SHORT, UNSLOTH
from benchmarks.gpu.session import Session
from benchmarks.gpu.table import write_table
from benchmarks.measure import RESULTS
from benchmarks.models import SHAPES

SIDES: Mapping[str, tuple[str, ...]] = {
    "ours": (OURS,),
    "trl": (TRL, TRL_PAIRS, TRL_SHORT),
    "unsloth": (UNSLOTH, OURS_BY_UNSLOTH),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, and in how much time."""
    parser.add_argument("--cell", nargs="+", choices=KINDS, default=list(KINDS), help="in this order, the most telling first; default: all")
    installed = "unsloth must be installed, and wants `--start spawn` (default: ours trl)"
    parser.add_argument("--side", nargs="+", choices=SIDES, default=["ours", "trl"], help=installed)
    parser.add_argument("--model", choices=SHAPES, default="7b")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=3, help="that are timed; one that is not comes before them (default: %(default)s)")
    parser.add_argument("--tokens-per-step", type=int, default=32_768, help="about as many real ones (default: %(default)s)")
    parser.add_argument("--tokens-per-batch", type=int, help="instead of the cell's own")
    parser.add_argument("--optimizer", choices=("adamw", "adamw_8bit", "paged_adamw_8bit"), help="instead of the cell's own")
    parser.add_argument("--checkpointing", choices=("none", "block", "selective"), help="for both sides, instead of what fits")
    parser.add_argument("--attention", metavar="NAME", help="of our side; default: the preset's")
    parser.add_argument("--kernels", metavar="NAME", help="of our side; default: the preset's")
    parser.add_argument("--minutes", type=float, default=8.0, help="what does not fit into them is not measured (default: %(default)s)")
    parser.add_argument("--home", type=Path, metavar="FOLDER", help="where weights and prepared data are, or will be; default: the cache")
    parser.add_argument("--prepare", action="store_true", help="tokenise all that is needed, and stop: no GPU is needed for it")
    parser.add_argument("--trace", action="store_true", help="instead: the kernels and the waits of a step of ours in the first cell")
    parser.add_argument("--recompiles", action="store_true", help="instead: how often batches of other lengths are compiled for anew")
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=RESULTS, help="where the table is kept, and added to")
    parser.add_argument("--start", choices=("forkserver", "spawn"), default="forkserver", help="how each run's process begins")


def run(given: argparse.Namespace) -> None:
    """Measure each cell; the table and the plot show them with those measured before."""
    session = Session.of(given)
    session.prepare()
    if given.prepare:
        print(f"prepared: {session.home}")  # noqa: T201
        return
    session = session.with_weights()
    if given.trace:
        write(given.results / "gpu_trace.json", session.trace(given.results))
    if given.recompiles:
        write(given.results / "gpu_recompiles.json", session.recompiles())
    if given.trace or given.recompiles:
        return
    results = Results(given.results)
    session.measure_all([side for name in given.side for side in SIDES[name]], results)
    print(write_table(results.cells, given.results / "gpu.md"))  # noqa: T201
    plot(results.cells, given.results / "gpu.png")

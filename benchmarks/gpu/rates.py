"""How fast the device multiplies matrices, by itself: what the use that is made of it is measured by."""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.gpu.cells import Cell
from benchmarks.gpu.operations import matrices

SIDE, REPEATS, WARM_UP = 8192, 10, 5
LARGE, OWN = "8192 x 8192 x 8192", "the model's shapes"


def measured_rates(cell: Cell) -> dict[str, Any]:
    """10^12 operations a second of bfloat16 products of random matrices: large, and a batch of tokens with each matrix of the model."""
    if not cell.device.startswith("cuda"):
        return {LARGE: None, OWN: None}
    import torch

    rows, shapes = cell.tokens_per_batch, matrices(cell.shape)
    large = _operations(SIDE, SIDE, SIDE) / _seconds(SIDE, SIDE, SIDE)
    seconds = {pair: _seconds(rows, *pair) for pair in set(shapes)}
    own = sum(_operations(rows, *pair) for pair in shapes) / sum(seconds[pair] for pair in shapes)
    each = {f"{rows} x {a} x {b}": _tera(_operations(rows, a, b) / taken) for (a, b), taken in sorted(seconds.items())}
    torch.cuda.empty_cache()
    return {LARGE: _tera(large), OWN: _tera(own), **each}


def _operations(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def _seconds(rows: int, inputs: int, outputs: int) -> float:
    """The median of some products."""
    import torch

    left, right = (torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in ((rows, inputs), (outputs, inputs)))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    for _ in range(WARM_UP):
        torch.mm(left, right.T)
    for number, mark in enumerate(marks):
        if number:
            torch.mm(left, right.T)
        mark.record()
    torch.cuda.synchronize()
    return median(one.elapsed_time(other) for one, other in pairwise(marks)) / 1e3


def _tera(rate: float) -> float:
    return round(rate / 1e12, 1)

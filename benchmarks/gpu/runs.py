"""One run of one side, in the process that calls it, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import ours
from benchmarks.gpu import theirs
from benchmarks.gpu.cells import KINDS, Cell
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.operations import Load, operations, padded, prompts_once, real
from benchmarks.gpu.prepared import open_work
from benchmarks.gpu.rates import LARGE, OWN, measured_rates

if TYPE_CHECKING:
    from benchmarks.cases import Work
    from benchmarks.trace import Trace

OURS, TRL, TRL_PAIRS, TRL_SHORT = "zephyr-kit", "trl", "trl, pair by pair", "trl, bfloat16 weights"
"""trl pads the pairs of a batch to the longest: one at a time there is less padding, and less to do at once. In full it trains
float32 weights by default, under autocast, as we update float32 masters; shorter ones forget small updates."""
UNSLOTH, OURS_BY_UNSLOTH = "unsloth", "zephyr-kit, unsloth"
"""Its trainer, and its kernels under our engine; where it is installed, with the trl that it takes."""


def sides_of(cell: Cell) -> Sequence[str]:
    """Who can be measured on it: ours alone where it is compared with another cell's."""
    if KINDS[cell.name].beside:
        return (OURS,)
    more = {TRL_PAIRS: cell.objective == "dpo", TRL_SHORT: cell.has_longer_weights}
    return (OURS, TRL, UNSLOTH, OURS_BY_UNSLOTH, *(side for side, suits in more.items() if suits))


def of_side(cell: Cell, side: str) -> Cell:
    """The cell as a side has it."""
    if side == OURS_BY_UNSLOTH:
        return replace(cell, backend="unsloth")
    return replace(cell, tokens_per_batch=2 * cell.max_length) if side == TRL_PAIRS else cell


def measure(cell: Cell, side: str) -> dict[str, Any]:
    """Train, and tell."""
    clock = Clock(device=cell.device)
    rates = measured_rates(cell)
    work = open_work(cell)
    if side in (OURS, OURS_BY_UNSLOTH):
        trace = ours.train(cell, work, clock)
    else:
        trace = theirs.train(cell, work, clock, weights_dtype=_dtype(cell, side), unsloth=side == UNSLOTH)
    return {"checkpointing": cell.checkpointing, **_facts(cell, trace, _loads(cell, work, side), rates), **clock.memory()}


def _dtype(cell: Cell, side: str) -> str:
    return "float32" if cell.has_longer_weights and side == TRL else cell.dtype


def _loads(cell: Cell, work: Work, side: str) -> dict[str, list[Load]]:
    """Of each step: the real tokens, and those that are computed."""
    steps = [[work.corpus[index] for index in work.step(number)] for number in range(work.num_steps)]
    asked = [real(trees) for trees in steps]
    if side == OURS:
        return {"real": asked, "computed": [prompts_once(trees) for trees in steps]}
    if cell.objective == "sft" or side == OURS_BY_UNSLOTH:
        return {"real": asked, "computed": asked}
    batches = [padded([work.corpus[index] for index in batch]) for batch in theirs.batches_of(cell, work)]
    each = len(batches) // work.num_steps
    return {"real": asked, "computed": [sum(batches[first : first + each], Load()) for first in range(0, len(batches), each)]}


def _facts(cell: Cell, trace: Trace, loads: Mapping[str, Sequence[Load]], rates: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: [operations(load, cell.shape, cell.method) for load in steps] for name, steps in loads.items()}
    tera = {name: _median_rate(steps, trace) / 1e12 for name, steps in counts.items()}
    return {
        **{f"{name} tokens a second": round(_median_rate([load.tokens for load in steps], trace), 1) for name, steps in loads.items()},
        **{f"TFLOP/s, {name} tokens": round(rate, 3) for name, rate in tera.items()},
        **{f"utilisation, {name} tokens": _share(rate, rates[LARGE]) for name, rate in tera.items()},
        "utilisation of the rate at the model's shapes, computed tokens": _share(tera["computed"], rates[OWN]),
        "TFLOP/s of torch.mm": rates,
        "seconds of each step": [round(each, 4) for each in trace.seconds],
        "seconds to the first step": round(trace.first_step, 2),
        "real tokens of each step": [load.tokens for load in loads["real"]],
        "computed tokens of each step": [load.tokens for load in loads["computed"]],
        "losses": trace.losses,
        "gradient norms": trace.norms,
    }


def _median_rate(amounts: Sequence[int], trace: Trace) -> float:
    """A second, in the median step; the first one is not timed."""
    return median(amount / seconds for amount, seconds in zip(amounts[1:], trace.seconds, strict=True))


def _share(rate: float, whole: float | None) -> float | None:
    return None if whole is None else round(rate / whole, 4)

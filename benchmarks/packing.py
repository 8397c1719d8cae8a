"""How much of the token budget stays empty when real data is packed, and how evenly ranks are loaded."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.dialogues import shared
from benchmarks.measure import apart, report
from benchmarks.workloads import MAX_LENGTH, SEED, WORKLOADS
from zephyr_kit.cache import cache_folder

if TYPE_CHECKING:
    from zephyr_kit.corpus import Corpus
    from zephyr_kit.plan import Plan

STEPS: dict[str, dict[str, int]] = {
    "32 examples": {"examples_per_step": 32},
    "128 examples": {"examples_per_step": 128},
    "131,072 tokens": {"tokens_per_step": 131_072},
}
CAPACITIES = (4096, 8192, 16384)
RANKS = (2, 4, 8)
CAPACITY_OF_RANKS = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """On what."""
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["chat", "arena", "pandalm"])


def run(given: argparse.Namespace) -> None:
    """Pack an epoch of each."""
    home = cache_folder("benchmarks")
    rows = [apart(measure, workload, home, folder=home, processors=given.processors) for workload in given.workload]
    report("packing", rows, processors=given.processors)


def measure(workload: str, home: Path) -> dict[str, Any]:
    """Shares in percent: `empty` of the budget; `avoidable`, what the fewest batches that could hold the tokens would save."""
    from zephyr_kit.plan import Plan

    corpus = _corpus(workload, home)
    lengths = corpus.row_lengths(share_prompts=True)
    figures: dict[str, Any] = {"workload": workload, "examples": len(corpus), "tokens": int(lengths.sum())}
    for name, size in STEPS.items():
        plan = Plan(corpus.lengths, SEED, **size)
        for capacity in CAPACITIES:
            label = f"steps of {name}, batches of {capacity:,}"
            figures[f"% empty, {label}"], figures[f"% avoidable, {label}"] = _waste(plan, lengths, capacity)
        for ranks in RANKS:
            figures[f"% imbalance, steps of {name}, {ranks} ranks"] = _imbalance(plan, lengths, ranks)
    return figures


def _corpus(workload: str, home: Path) -> Corpus:
    """All of the data, with the Mistral tokenizer and Zephyr's template."""
    from zkit_mistral.tokenizer import open_tokenizer

    from zephyr_kit.admission import Door
    from zephyr_kit.cache import cache_folder
    from zephyr_kit.config import Builder
    from zephyr_kit.corpus import prepare
    from zephyr_kit.plugins import Plugins
    from zephyr_kit.portion import Portion

    data = WORKLOADS[workload]
    portion = Builder(Plugins().offers, __file__).convert(Portion, data.whole(home), "data")
    tokenizer = open_tokenizer(str(shared() / "models" / "mistral-7b-v0.1-tokenizer"), template="zephyr")
    return prepare([portion], tokenizer, Door(2 if data.objective == "dpo" else 1, MAX_LENGTH, "cut"), cache=cache_folder("corpora"))


def _waste(plan: Plan, lengths: Any, capacity: int) -> tuple[float, float]:
    from zephyr_kit.plan import pack

    tokens = num_batches = fewest = 0
    for number in range(plan.num_steps):
        indices = plan.step(number)
        here = int(lengths[indices].sum())
        tokens += here
        fewest += math.ceil(here / capacity)
        num_batches += len(pack(indices, lengths, capacity))
    return _percent(1 - tokens / (num_batches * capacity)), _percent(1 - fewest / num_batches)


def _imbalance(plan: Plan, lengths: Any, ranks: int) -> float:
    """How much longer the fullest rank works than the mean, step by step."""
    from zephyr_kit.plan import pack
    from zephyr_kit.world import World

    most = even = 0.0
    for number in range(plan.num_steps):
        batches: Sequence[Sequence[int]] = pack(plan.step(number), lengths, CAPACITY_OF_RANKS, multiple=ranks)
        loads = [sum(int(lengths[index]) for batch in World(rank, ranks).mine(batches) for index in batch) for rank in range(ranks)]
        most += max(loads)
        even += sum(loads) / ranks
    return _percent(most / even - 1)


def _percent(share: float) -> float:
    return round(100 * share, 2)

"""What the engine asks of a plugin, and what it hands over."""

from __future__ import annotations

from zephyr_kit.protocols.data import INLINE, DataSource, Filter, Memory, Verdict
from zephyr_kit.protocols.measure import Evaluation, Suite
from zephyr_kit.protocols.model import (
    Attention,
    Backend,
    Objective,
    OptimizerFactory,
    Outcome,
    Policy,
    Scores,
    Start,
    Tokenizer,
    num_units,
)
from zephyr_kit.protocols.replies import Bench, Case, Completer, Failure, Judge, Judgement, Reply, Request, Sampling

__all__ = [
    "INLINE",
    "Attention",
    "Backend",
    "Bench",
    "Case",
    "Completer",
    "DataSource",
    "Evaluation",
    "Failure",
    "Filter",
    "Judge",
    "Judgement",
    "Memory",
    "Objective",
    "OptimizerFactory",
    "Outcome",
    "Policy",
    "Reply",
    "Request",
    "Sampling",
    "Scores",
    "Start",
    "Suite",
    "Tokenizer",
    "Verdict",
    "num_units",
]

"""What the engine asks of a plugin, and what it hands over."""

from __future__ import annotations

from zephyr_kit.protocols.data import INLINE, DataSource, Filter, Memory, Verdict
from zephyr_kit.protocols.launch import Job, Launcher
from zephyr_kit.protocols.measure import Evaluation, Suite
from zephyr_kit.protocols.model import (
    Attention,
    Backend,
    ChoosingAttention,
    Leaner,
    Objective,
    OptimizerFactory,
    Outcome,
    Policy,
    Scores,
    Skeleton,
    Start,
    Tokenizer,
    broken_laws,
    num_units,
    updates_bfloat16,
)
from zephyr_kit.protocols.replies import Bench, Case, Completer, Failure, Judge, Judgement, Reply, Request, Sampling

__all__ = [
    "INLINE",
    "Attention",
    "Backend",
    "Bench",
    "Case",
    "ChoosingAttention",
    "Completer",
    "DataSource",
    "Evaluation",
    "Failure",
    "Filter",
    "Job",
    "Judge",
    "Judgement",
    "Launcher",
    "Leaner",
    "Memory",
    "Objective",
    "OptimizerFactory",
    "Outcome",
    "Policy",
    "Reply",
    "Request",
    "Sampling",
    "Scores",
    "Skeleton",
    "Start",
    "Suite",
    "Tokenizer",
    "Verdict",
    "broken_laws",
    "num_units",
    "updates_bfloat16",
]

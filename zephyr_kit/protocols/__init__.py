"""What the engine asks of a plugin, and what it hands over."""

from __future__ import annotations

from zephyr_kit.protocols.data import INLINE, DataSource, Filter, Memory, Verdict
from zephyr_kit.protocols.launch import Job, Launcher
from zephyr_kit.protocols.measure import Evaluation, Suite
from zephyr_kit.protocols.model import (
    Attention,
    Backend,
    ChoosingAttention,
    ChoosingBackend,
    Leaner,
    MergingBackend,
    OptimizerFactory,
    Policy,
    PolicyWithDistributions,
    Skeleton,
    Start,
    Tokenizer,
    broken_laws,
    updates_bfloat16,
)
from zephyr_kit.protocols.objective import Objective, Outcome, Scores, Surveying, metrics_of, needs_ratings, num_units, survey_of
from zephyr_kit.protocols.replies import Bench, Case, Completer, Failure, Judge, Judgement, Reply, Request, Sampling
from zephyr_kit.protocols.track import Track, Tracker

__all__ = [
    "INLINE",
    "Attention",
    "Backend",
    "Bench",
    "Case",
    "ChoosingAttention",
    "ChoosingBackend",
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
    "MergingBackend",
    "Objective",
    "OptimizerFactory",
    "Outcome",
    "Policy",
    "PolicyWithDistributions",
    "Reply",
    "Request",
    "Sampling",
    "Scores",
    "Skeleton",
    "Start",
    "Suite",
    "Surveying",
    "Tokenizer",
    "Track",
    "Tracker",
    "Verdict",
    "broken_laws",
    "metrics_of",
    "needs_ratings",
    "num_units",
    "survey_of",
    "updates_bfloat16",
]

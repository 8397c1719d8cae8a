"""How far two judges agree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from zephyr_kit.protocols import Failure, Judgement


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two judges on the same cases; shares are None where there is nothing to take a share of."""

    judges: str
    """Who is compared with whom."""
    cases: int
    """Those that both have judged."""
    pairs: int
    """Pairs of replies that neither finds equal."""
    same_order: float | None
    """The share of these pairs that both put in the same order; a coin gives 0.5."""
    ties: float | None
    """The share of all pairs that at least one finds equal."""
    same_best: float | None
    """The share of cases where both have a best reply in common."""


def compare(judges: str, firsts: Sequence[Judgement | Failure], seconds: Sequence[Judgement | Failure]) -> Agreement:
    """Compare two lists of judgements of the same cases, their replies in the same order."""
    both = [(a.scores, b.scores) for a, b in zip(firsts, seconds, strict=True) if isinstance(a, Judgement) and isinstance(b, Judgement)]
    signs = [sign for a, b in both for sign in _signs(a, b)]
    told = [sign for sign in signs if sign]
    best = [bool(_best(a) & _best(b)) for a, b in both]
    same_order, ties = _share([sign > 0 for sign in told]), _share([not sign for sign in signs])
    return Agreement(judges, len(both), len(told), same_order, ties, _share(best))


def _signs(first: Sequence[float], second: Sequence[float]) -> list[int]:
    """For each pair of replies: 1 the same order, -1 the other, 0 a tie."""
    pairs = itertools.combinations(range(len(first)), 2)
    products = [(first[i] - first[j]) * (second[i] - second[j]) for i, j in pairs]
    return [(product > 0) - (product < 0) for product in products]


def _best(scores: Sequence[float]) -> set[int]:
    return {place for place, score in enumerate(scores) if score == max(scores)}


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None

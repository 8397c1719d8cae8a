"""Scored completions made into what an objective learns from: pairs, rankings, or the best alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Interval

from zephyr_kit.example import TEXT, Example, ExampleError, Message, check_message

if TYPE_CHECKING:
    import numpy as np

Rule = Literal["best_random", "best_worst", "all_pairs", "ranked", "best", "each"]
Said = tuple[tuple[str, str], ...]
"""Role and text of each turn, less the space around it."""

BLANK, UNSCORED, REPEATED = "blank text", "no score", "the same text as another"


@dataclass(frozen=True, slots=True)
class Paired:
    """What came of the completions of one row."""

    examples: tuple[Example, ...]
    """The chosen completion first, or ranked with the best first; each origin ends in the completions it holds, counted from 1."""
    left_out: tuple[str, ...] = ()
    """A reason for each completion that was not considered, in words that can be counted."""
    reason: str = ""
    """Why no example came of the row; empty when one did."""


@dataclass(frozen=True, slots=True)
class Binarise:
    """How the scored completions of a row become examples (arXiv 2310.16944, section 3)."""

    rule: Rule = "best_random"
    """Best against a random lower one (Zephyr), against the worst, every pair, all of them ranked, the best alone, or each by itself."""
    margin: Annotated[float, Ge(0)] = 0.0
    """The least difference of scores within a pair, or between neighbours of a ranking."""
    ties: Literal["drop", "keep"] = "drop"
    """Whether a completion may be set against another of equal score; a ranking with ties is dropped or kept whole."""
    take: Annotated[int, Ge(2)] | None = None
    """So many completions of a ranking, from the best to the worst, evenly, no two of equal score; rows with fewer are left out."""
    seed: Annotated[int, Interval(ge=0, lt=2**63)] = 0
    """Of what is drawn: which lower one, and which of several that share the best (or worst) score."""

    def __post_init__(self) -> None:
        if self.ties == "keep" and self.margin:
            raise ValueError(f'`ties` = "keep" asks for pairs of equal scores, which `margin` = {self.margin:g} rules out')
        if self.num_completions == 1 and (self.ties == "keep" or self.margin):
            raise ValueError(f'rule = "{self.rule}" compares nothing: leave out `margin` and `ties`')
        if self.take is not None and (self.rule != "ranked" or self.ties == "keep"):
            raise ValueError('`take` is for rule = "ranked" with `ties` = "drop"')

    @property
    def num_completions(self) -> int | None:
        """How many completions each example gets; None for a ranking of all that there are."""
        return {"ranked": self.take, "best": 1, "each": 1}.get(self.rule, 2)

    def apply(self, example: Example, row: int) -> Paired:
        """The examples of row number `row`; what is drawn depends on the seed and that number alone.

        Completions are left out when they say nothing, have no finite score, or say what an earlier
        scored one said (but for the space around it): the first score that a text got stands. Raises
        `ExampleError` where a turn is no text, or scores and completions differ in number.
        """
        scores = example.scores or (math.nan,) * len(example.completions)
        if len(scores) != len(example.completions):
            raise ExampleError(f"has {len(scores)} score(s) for {len(example.completions)} completion(s)")
        said = [_said(completion) for completion in example.completions]
        fates = [_fate(said, scores, number) for number in range(len(said))]
        kept = [number for number, fate in enumerate(fates) if not fate]
        left_out = tuple(fate for fate in fates if fate)
        if len(kept) < min(self.num_completions or 2, 2):
            return Paired((), left_out, f"{'none' if not kept else 'one'} of its completions can be considered")
        orders = self._orders(kept, scores, row)
        return Paired(tuple(_example(example, order, scores) for order in orders), left_out, "" if orders else self._reason)

    def _orders(self, kept: Sequence[int], scores: Sequence[float], row: int) -> list[tuple[int, ...]]:
        """Which completions each example holds, the best first."""
        ranked = sorted(kept, key=lambda number: -scores[number])
        if self.rule == "each":
            return [(number,) for number in kept]
        if self.rule == "all_pairs":
            return [pair for pair in itertools.combinations(ranked, 2) if self._apart(*pair, scores)]
        if self.take is not None:
            return self._spread(ranked, scores, self.take)
        if self.rule == "ranked":
            return [tuple(ranked)] if all(self._apart(*pair, scores) for pair in itertools.pairwise(ranked)) else []
        chance = _chance(self.seed, row)
        best = _drawn([number for number in ranked if scores[number] == scores[ranked[0]]], chance)
        if self.rule == "best":
            return [(best,)]
        others = [number for number in ranked if number != best and self._apart(best, number, scores)]
        if self.rule == "best_worst":
            others = [number for number in others if scores[number] == scores[others[-1]]]
        return [(best, _drawn(others, chance))] if others else []

    def _spread(self, ranked: Sequence[int], scores: Sequence[float], count: int) -> list[tuple[int, ...]]:
        """So many of those that are apart, evenly; nothing where there are fewer."""
        steps: list[int] = []
        for number in ranked:
            if not steps or self._apart(steps[-1], number, scores):
                steps.append(number)
        return [tuple(steps[round(place * (len(steps) - 1) / (count - 1))] for place in range(count))] if len(steps) >= count else []

    def _apart(self, better: int, worse: int, scores: Sequence[float]) -> bool:
        difference = scores[better] - scores[worse]
        # 4.3 - 4.2 is a little less than 0.1.
        return difference > self.margin - 1e-9 and (difference > 0 or self.ties == "keep")

    @property
    def _reason(self) -> str:
        least = f"by {self.margin:g} or more" if self.margin else "at all"
        if self.take is not None:
            return f"fewer than {self.take} scores differ {least}"
        if self.rule == "ranked":
            return f"two neighbours in the ranking do not differ {least}"
        return f"no two scores differ {least}" if self.rule == "all_pairs" else f"no score is below the best {least}"


def _said(completion: Sequence[Message]) -> Said:
    for message in completion:
        if type(message.content) is not str:
            check_message(message)
    return tuple((message.role, message.content.strip()) for message in completion)


def _fate(said: Sequence[Said], scores: Sequence[float], number: int) -> str:
    """Why a completion is left out; empty when it is not."""
    texts = [text for role, text in said[number] if role in ("assistant", TEXT)]
    if not texts or not all(texts):
        return BLANK
    if not math.isfinite(scores[number]):
        return UNSCORED
    earlier = (said[other] for other in range(number) if math.isfinite(scores[other]))
    return REPEATED if said[number] in earlier else ""


def _example(example: Example, order: tuple[int, ...], scores: Sequence[float]) -> Example:
    # Its notes are the row's, of which there may be many pairs: whoever counts them has done so.
    held = " over ".join(str(number + 1) for number in order)
    completions = tuple(example.completions[number] for number in order)
    return Example(example.prompt, completions, tuple(scores[number] for number in order), f"{example.origin} ({held})".lstrip())


def _chance(seed: int, row: int) -> np.random.Generator:
    """A stream of its own for each row: rows draw independently, in any order."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=[seed, row]))


def _drawn(numbers: Sequence[int], chance: np.random.Generator) -> int:
    return numbers[int(chance.integers(len(numbers)))]

"""Rows of raw UltraFeedback: a prompt, its completions, and what GPT-4 thought of each (arXiv 2310.01377)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from zephyr_kit.example import Example, ExampleError, Message
from zkit_sources.turns import Row, describe, known_keys, required, text_of

ScoreName = Literal["overall", "mean", "instruction_following", "honesty", "truthfulness", "helpfulness"]

REPAIRED = "an overall score of 10 repaired to 1"
DOUBTED = "an overall score of 10 taken away: it may be a 1"


@dataclass(frozen=True, slots=True)
class Rated:
    """How the completions of a row are scored; one without a usable score has `math.nan`, whoever pairs them leaves it out."""

    score: ScoreName = "overall"
    repair: bool = True

    def read(self, row: Row) -> Example:
        """`instruction`, and `completions` in their order, each with its score.

        `models` may be of another length, and the system prompts are the completers' own: neither is read.
        """
        instruction = text_of(required(row, "instruction"), "`instruction`")
        completions = completions_of(row)
        replies = (text_of(one["response"], f"`response` of completion {number}") for number, one in enumerate(completions, 1))
        said = tuple((Message("assistant", reply),) for reply in replies)
        scores, notes = zip(*map(self._score, completions), strict=True)
        return Example((Message("user", instruction),), said, scores, notes=tuple(note for note in notes if note))

    def _score(self, completion: Row) -> tuple[float, str]:
        """The score, and what was changed about it."""
        if self.score == "mean":
            return mean_rating(completion), ""
        if self.score != "overall":
            return rating_of(completion, self.score), ""
        score = number_in(completion.get("overall_score"))
        return repaired(score, mean_rating(completion)) if self.repair else (score, "")


def repaired(score: float, mean: float) -> tuple[float, str]:
    """Undo `score if score > 1 else 10 * score`, which made a 10 of each 1, by the published rule.

    A 10 whose mean rating (of 5) is at most 2 was a 1, one above 4 is a 10; between them nothing
    tells, and it counts as missing. Where no aspect was rated, it stands. OpenBMB/UltraFeedback, issue 8.
    """
    if score != 10 or math.isnan(mean) or mean > 4:
        return score, ""
    return (1.0, REPAIRED) if mean <= 2 else (math.nan, DOUBTED)


def mean_rating(completion: Row) -> float:
    """The mean over the aspects that are rated with a number."""
    annotations = completion.get("annotations")
    names = annotations if isinstance(annotations, Mapping) else ()
    ratings = [rating for name in names if not math.isnan(rating := rating_of(completion, name))]
    return sum(ratings) / len(ratings) if ratings else number_in(completion.get("fine-grained_score"))


def rating_of(completion: Row, aspect: str) -> float:
    """What one aspect was rated with."""
    annotations = completion.get("annotations")
    note = annotations.get(aspect) if isinstance(annotations, Mapping) else None
    return number_in(note.get("Rating")) if isinstance(note, Mapping) else math.nan


def number_in(value: Any) -> float:
    """A number, also one written as text; `math.nan` for "N/A" and whatever else is none.

    Always that one `nan`: tuples that hold it are equal then, and a row read twice is the same row.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def completions_of(row: Row) -> list[Row]:
    """The completions, at least one, each with a response of whatever kind."""
    completions = required(row, "completions")
    if not isinstance(completions, list):
        raise ExampleError(f"`completions` is {describe(completions)}, not a list")
    if not completions:
        raise ExampleError("the list of completions is empty")
    for number, one in enumerate(completions, 1):
        if not isinstance(one, Mapping):
            raise ExampleError(f"completion {number} is {describe(one)}, not an object")
        if "response" not in one:
            raise ExampleError(f"completion {number} has no `response`" + (f" (it has {known_keys(one)})" if one else ""))
    return completions

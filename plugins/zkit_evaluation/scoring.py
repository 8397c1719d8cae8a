"""Log-probabilities of data under models, computed once for each model's content."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Gt, Interval

from zephyr_kit.portion import Portion

if TYPE_CHECKING:
    from zephyr_kit.corpus import Corpus
    from zephyr_kit.reference import ReferenceScores
    from zephyr_kit.subjects import Subject

TOKENS_PER_BATCH = 4096
"""Padding there is none; a longer example is scored by itself."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Data that is scored, and how it is read: the keys are those of a stage that trains."""

    data: tuple[Portion, ...]
    max_length: Annotated[int, Gt(0)] = 2048
    """Tokens of a prompt with its longest completion; no more than the model has positions."""
    too_long: Literal["cut", "drop", "refuse"] = "cut"
    bad_rows: Annotated[float, Interval(ge=0, le=1)] = 0.01
    """The share of rows that may be bad before it stops."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("needs at least one table in `data`")

    def problems(self) -> Sequence[str]:
        """None but those of the rows, which whoever runs it asks for."""
        return []


def corpus_of(scored: Scored, subject: Subject, *, completions: int, where: str) -> Corpus:
    """The rows as this model's tokenizer has them; raises `DataError` when too many are bad."""
    from zephyr_kit.admission import Door
    from zephyr_kit.cache import cache_folder
    from zephyr_kit.corpus import prepare, refuse_bad_rows

    longest = min(scored.max_length, subject.max_length or scored.max_length)
    door = Door(completions, longest, scored.too_long)
    track = subject.narrator.track
    corpus = prepare(scored.data, subject.tokenizer, door, cache=cache_folder("corpora"), track=lambda part: track(f"{part} {where}"))
    refuse_bad_rows(corpus, allowed=scored.bad_rows, name=where)
    return corpus


def score(subject: Subject, corpus: Corpus, where: str) -> ReferenceScores:
    """The log-probability of every target of the corpus, from the store of reference scores as far as they are known."""
    from zephyr_kit.cache import cache_folder
    from zephyr_kit.reference import Scoring
    from zephyr_kit.score_store import ScoreStore

    about = f"measured: {subject.start.folder.absolute()}" if subject.start.folder else "measured"
    share = bool(getattr(subject.backend, "shares_prompts", True))
    with closing(ScoreStore(cache_folder("references"), subject.scorer, about)) as store, subject() as policy:
        scoring = Scoring(policy, store, subject.device, TOKENS_PER_BATCH, share, subject.narrator, noun="scores")
        return scoring.scores_of(corpus, where)


def completion_sums(scores: ReferenceScores, index: int) -> list[float]:
    """The log-probability of each completion of an example."""
    return [float(scores.values[key].astype("float64").sum()) if key else 0.0 for key in scores.keys[index]]

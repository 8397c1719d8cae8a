"""What laws are tried on, drawn by hypothesis: it looks for what breaks a law, and tells the smallest that does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure
from hypothesis.strategies import SearchStrategy

from zephyr_kit.batch import Tree
from zephyr_kit.example import Example, Message
from zephyr_kit.protocols import Scores

SMALLEST = "the smallest that was found to break it: "
"""How the note begins on what a law failed with."""
FOUND = "found to break it: "
"""The same where no smaller one was looked for."""
LETTERS = (*"ab z.Aß,é1?\n\t'\"{\\-–中🙂\u0301\u200b\u202e",)
"""Of everything that text is made of, a little."""
PIECES = (*LETTERS, "</s>", "<|user|>", "[INST]", "{{ x }}", "a" * 30, "word ")
"""And what templates and patterns stumble over."""
SEEDS = st.integers(0, 2**16)
NEAR = 0.05
"""How far a token is from the reference at the most, where a stage has just begun."""
RATINGS = (0.0, 1.0, 5.0)
"""The lowest of an example."""

T = TypeVar("T")


def for_all(drawn: SearchStrategy[T], law: Callable[[T], None], *, cases: int, shrink: bool = True) -> None:
    """Try a law on as many cases, the same ones each time for the same code; raise what it raises on the smallest on which it fails.

    To find that one takes hundreds of tries: `shrink` is for laws whose tries take milliseconds. No time is limited, and none of
    what fails is kept. Everything is set here, as hypothesis has other defaults where `CI` is set.
    """

    @settings(
        max_examples=cases,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    @given(drawn)
    def holds(case: T) -> None:
        try:
            law(case)
        except Exception as error:
            error.add_note(f"{SMALLEST if shrink else FOUND}{case}")
            raise

    try:
        holds()
    except FlakyFailure as flaky:  # it failed once, and not again: what it failed with is what matters
        raise flaky.exceptions[0] from None


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of the tokens of completions, example after example."""

    policy: Sequence[Sequence[float]]
    reference: Sequence[Sequence[float]]
    """As long as those of the policy."""
    ratings: Sequence[float]

    def scores(self, dtype: torch.dtype = torch.float64) -> tuple[Scores, Scores]:
        """Those of the policy, with a graph, and of the reference."""
        sequences = [number for number, logp in enumerate(self.policy) for _ in logp]
        logp, reference = (torch.tensor([*itertools.chain(*lists)], dtype=dtype) for lists in (self.policy, self.reference))
        sequence_M, rating_N = torch.tensor(sequences), torch.tensor(self.ratings)
        count = len(self.policy)
        return Scores(logp.requires_grad_(), sequence_M, count, rating_N), Scores(reference, sequence_M, count, rating_N)

    def unrated(self) -> Scored:
        """The same of data that says nothing of its completions."""
        return replace(self, ratings=[math.nan] * len(self.ratings))


@st.composite
def scored(
    draw: st.DrawFn, completions: int, *lowest: float, highest: float = 0.0, least: int = 1, ratings: Sequence[float] = RATINGS
) -> Scored:
    """Up to 4 examples with log-probabilities anywhere from one of `lowest` to `highest`: both ends, and equal ones, too."""
    low, sizes = draw(st.sampled_from(lowest)), draw(_sizes(completions, least))
    logp = st.floats(low, highest, allow_subnormal=False)
    policy, reference = ([draw(st.lists(logp, min_size=size, max_size=size)) for size in sizes] for _ in range(2))
    return Scored(policy, reference, draw(_ratings(len(sizes), completions, ratings)))


@st.composite
def in_general_position(draw: st.DrawFn, completions: int, lowest: float, *, ratings: Sequence[float] = RATINGS) -> Scored:
    """Up to 4 examples with log-probabilities that no objective can expect, near the reference: no two are equal, nor ratings."""
    sizes, dice = draw(_sizes(completions, 1)), np.random.default_rng(draw(SEEDS))
    reference = [lowest * dice.random(size) for size in sizes]
    policy = [np.minimum(each + NEAR * dice.uniform(-1, 1, len(each)), -1e-6) for each in reference]
    ratings_drawn = draw(_ratings(len(sizes), completions, ratings, 0.25))
    return Scored([each.tolist() for each in policy], [each.tolist() for each in reference], ratings_drawn)


@st.composite
def trees(
    draw: st.DrawFn,
    completions: int,
    *,
    count: tuple[int, int] = (1, 5),
    shortest: int = 1,
    longest: int = 8,
    prompt: int | None = None,
    vocabulary: int = 50,
) -> list[Tree]:
    """Token trees, all trained; prompts may be shorter than the `shortest` completion where `prompt` says so."""
    number, dice = draw(st.integers(*count)), np.random.default_rng(draw(SEEDS))
    ratings = np.reshape(draw(_ratings(number * completions, completions, RATINGS)), (number, completions)).tolist()
    least = shortest if prompt is None else prompt
    lengths = st.tuples(st.integers(least, longest), *[st.integers(shortest, longest)] * completions)

    def tree(own: list[float]) -> Tree:
        first, *texts = (dice.integers(3, vocabulary, length).astype(np.int32) for length in draw(lengths))
        return Tree(first, tuple(texts), tuple(np.ones(len(text), np.bool_) for text in texts), tuple(own))

    return [tree(own) for own in ratings]


@st.composite
def examples(
    draw: st.DrawFn, completions: int = 1, pieces: Sequence[str] = LETTERS, *, scores: bool | None = None, blank: bool = False
) -> Example:
    """Dialogues in whatever can be written with these pieces, nothing too if `blank`; of several turns, some with a system message.

    They are scored if `scores`; some are if None.
    """
    text = st.lists(st.sampled_from(pieces), max_size=20).map("".join).filter(lambda told: blank or told.strip())
    system, user, assistant = (st.builds(Message, st.just(role), text) for role in ("system", "user", "assistant"))
    prompts = [st.tuples(user), st.tuples(system, user), st.tuples(user, assistant, user)]
    reply = st.tuples(assistant) | st.tuples(assistant, user, assistant)
    replies = draw(st.lists(reply, min_size=completions, max_size=completions, unique=not blank))
    rated = draw(st.booleans()) if scores is None else scores
    values = draw(st.tuples(*[st.floats(0, 10) | st.just(math.nan)] * completions)) if rated else None
    return Example(draw(st.one_of(prompts)), tuple(replies), values, f"drawn:{draw(st.integers(1, 99))}")


def _sizes(completions: int, least: int) -> SearchStrategy[list[int]]:
    """Target tokens of each completion of `least` to 4 examples."""
    sizes = st.lists(st.integers(1, 5), min_size=completions, max_size=completions)
    return st.lists(sizes, min_size=least, max_size=4).map(lambda some: [*itertools.chain(*some)])


def _ratings(count: int, completions: int, lowest: Sequence[float], gap: float = 0.0) -> SearchStrategy[list[float]]:
    """Of `count` completions: those of an example fall, by at least `gap` each, from its first to its last, which has one of `lowest`."""
    own = st.tuples(st.sampled_from(lowest), *[st.floats(gap, 2)] * (completions - 1))
    return st.lists(own, min_size=count // completions, max_size=count // completions).map(_falling)


def _falling(lowest_and_gaps: Sequence[Sequence[float]]) -> list[float]:
    return [rating for own in lowest_and_gaps for rating in [*itertools.accumulate(own)][::-1]]

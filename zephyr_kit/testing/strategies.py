"""What laws are tried on, drawn by hypothesis: it looks for what breaks a law, and tells the smallest that does."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
LETTERS = (*"ab z.Aß,é1?\n\t'\"{\\-–中🙂\u0301\u200b\u202e",)
"""Of everything that text is made of, a little."""
PIECES = (*LETTERS, "</s>", "<|user|>", "[INST]", "{{ x }}", "a" * 30, "word ")
"""And what templates and patterns stumble over."""

T = TypeVar("T")


def for_all(drawn: SearchStrategy[T], law: Callable[[T], None], *, cases: int, shrink: bool = True) -> None:
    """Try a law on as many cases, the same ones each time; raise what it raises on the smallest on which it fails.

    To find that one takes hundreds of tries: `shrink` is for laws whose tries take milliseconds. No time is limited, and none of
    what fails is kept.
    """

    @settings(
        max_examples=cases,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
    )
    @given(drawn)
    def holds(case: T) -> None:
        try:
            law(case)
        except Exception as error:
            if shrink:
                error.add_note(f"{SMALLEST}{case}")
            raise

    try:
        holds()
    except FlakyFailure as flaky:  # it failed once, and not again: what it failed with is what matters
        raise flaky.exceptions[0] from None


@dataclass(frozen=True)
class Compared:
    """Log-probabilities of the tokens of completions, example after example."""

    policy: Sequence[Sequence[float]]
    reference: Sequence[Sequence[float]]
    """As long as those of the policy."""
    ratings: Sequence[float]

    def scores(self) -> tuple[Scores, Scores]:
        """Those of the policy, with a graph, and of the reference; in float64."""
        sequences = [number for number, logp in enumerate(self.policy) for _ in logp]
        logp, reference = (torch.tensor([*itertools.chain(*lists)], dtype=torch.float64) for lists in (self.policy, self.reference))
        sequence_M, rating_N = torch.tensor(sequences), torch.tensor(self.ratings)
        count = len(self.policy)
        return Scores(logp.requires_grad_(), sequence_M, count, rating_N), Scores(reference, sequence_M, count, rating_N)


@st.composite
def compared(draw: st.DrawFn, completions: int, *lowest: float, highest: float = 0.0, least: int = 1) -> Compared:
    """Up to 4 examples with log-probabilities anywhere from one of `lowest` to `highest`: both ends, and equal ones, too."""
    low, sizes = draw(st.sampled_from(lowest)), draw(_sizes(completions, least))
    logp = st.floats(-low, highest, allow_subnormal=False)
    policy, reference = ([draw(st.lists(logp, min_size=size, max_size=size)) for size in sizes] for _ in range(2))
    return Compared(policy, reference, draw(_ratings(len(sizes), completions)))


@st.composite
def in_general_position(draw: st.DrawFn, completions: int, lowest: float, least: int = 1) -> Compared:
    """Up to 4 examples with log-probabilities that no objective can expect: no two are equal, and none is a round figure."""
    sizes, dice = draw(_sizes(completions, least)), np.random.default_rng(draw(SEEDS))
    policy, reference = ([(-lowest * dice.random(size)).tolist() for size in sizes] for _ in range(2))
    return Compared(policy, reference, draw(_ratings(len(sizes), completions)))


@st.composite
def trees(
    draw: st.DrawFn, completions: int, *, count: tuple[int, int] = (1, 5), longest: int = 8, prompt: int = 1, vocabulary: int = 50
) -> list[Tree]:
    """Token trees, all trained, with prompts of at least `prompt` tokens."""
    number, dice = draw(st.integers(*count)), np.random.default_rng(draw(SEEDS))
    ratings = np.reshape(draw(_ratings(number * completions, completions)), (number, completions)).tolist()
    lengths = st.tuples(st.integers(prompt, longest), *[st.integers(1, longest)] * completions)

    def tree(own: list[float]) -> Tree:
        first, *texts = (dice.integers(3, vocabulary, length).astype(np.int32) for length in draw(lengths))
        return Tree(first, tuple(texts), tuple(np.ones(len(text), np.bool_) for text in texts), tuple(own))

    return [tree(own) for own in ratings]


def examples(completions: int = 1, pieces: Sequence[str] = LETTERS) -> SearchStrategy[Example]:
    """Dialogues of one question or two, in whatever can be written with these pieces."""
    text = st.lists(st.sampled_from(pieces), min_size=1, max_size=20).map("".join).filter(str.strip)
    user, assistant = (st.builds(Message, st.just(role), text) for role in ("user", "assistant"))
    prompt = st.tuples(user) | st.tuples(user, assistant, user)
    replies = st.lists(st.tuples(assistant), min_size=completions, max_size=completions, unique=True).map(tuple)
    scores = st.none() | st.tuples(*[st.floats(0, 10)] * completions)
    return st.builds(Example, prompt, replies, scores, st.just("drawn:1"))


SEEDS = st.integers(0, 2**16)


def _sizes(completions: int, least: int) -> SearchStrategy[list[int]]:
    """Target tokens of each completion of `least` to 4 examples."""
    sizes = st.lists(st.integers(1, 5), min_size=completions, max_size=completions)
    return st.lists(sizes, min_size=least, max_size=4).map(lambda some: [*itertools.chain(*some)])


def _ratings(count: int, completions: int) -> SearchStrategy[list[float]]:
    """Of `count` completions: those of an example fall from its first, which is rated 1 or 0."""
    own = st.tuples(st.sampled_from((0.0, 1.0)), *[st.floats(0.25, 2.0)] * (completions - 1)).map(_falling)
    return st.lists(own, min_size=count // completions, max_size=count // completions).map(lambda some: [*itertools.chain(*some)])


def _falling(first_and_gaps: Sequence[float]) -> Sequence[float]:
    return [*itertools.accumulate(first_and_gaps, operator.sub)]

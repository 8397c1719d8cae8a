"""Token sequences as they are shown: which tokens are trained, long ones without their middle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zephyr_kit.cli.harmless import harmless
from zephyr_kit.example import completion_name

if TYPE_CHECKING:
    from zephyr_kit.batch import Tree
    from zephyr_kit.protocols import Tokenizer

SHOWN = 400
"""Tokens of a passage; of a longer one, its beginning and its end."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token as a reader sees it."""

    text: str
    id: int
    trained: bool
    ends: bool
    """Whether it ends a reply."""


@dataclass(frozen=True)
class Passage:
    """A prompt, or a completion."""

    name: str
    tokens: tuple[Token, ...]

    @property
    def num_trained(self) -> int:
        """How many of its tokens are trained."""
        return sum(token.trained for token in self.tokens)

    @property
    def parts(self) -> list[tuple[Token, ...] | int]:
        """Its tokens; of a long passage the beginning, how many are left out, and the end."""
        if len(self.tokens) <= SHOWN:
            return [self.tokens]
        return [self.tokens[: SHOWN // 2], len(self.tokens) - SHOWN // 2 * 2, self.tokens[-(SHOWN // 2) :]]


def passages(tree: Tree, tokenizer: Tokenizer) -> list[Passage]:
    """The prompt of an example and its completions."""
    shown: list[Passage] = []
    for number, (ids, trained) in enumerate(zip(tree.completions, tree.trained, strict=True)):
        both = [*tree.prompt.tolist(), *ids.tolist()]
        flags = [False] * len(tree.prompt) + trained.tolist()
        ends = tokenizer.ends
        tokens = tuple(Token(text, one, flag, one in ends) for text, one, flag in zip(tokenizer.pieces(both), both, flags, strict=True))
        size = len(tree.prompt)
        if size and not shown:
            shown.append(Passage("prompt", tokens[:size]))
        shown.append(Passage(completion_name(number, len(tree.completions)).removeprefix("the "), tokens[size:]))
    return shown


def runs(tokens: Sequence[Token]) -> Iterator[tuple[bool, list[Token]]]:
    """Tokens next to each other that are all trained, or all not."""
    for trained, run in itertools.groupby(tokens, key=lambda token: token.trained):
        yield trained, list(run)


def visible(text: str) -> str:
    """With its line ends, tabs and other control characters shown."""
    return harmless(text).replace("\n", "⏎\n").replace("\t", "⇥\t")

"""Prompts with the completions of others, by which an objective tells how far the policy has moved in general."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from zephyr_kit import ZkitError
from zephyr_kit.batch import Tree
from zephyr_kit.exits import Exit
from zephyr_kit.trees import Examples, Indices


class OnePromptError(ZkitError):
    """Data without two prompts that differ."""

    exit = Exit.BAD_DATA


@dataclass(frozen=True)
class Mismatched:
    """The same examples, each with the completions of another, cut to the same length.

    The other is the one half the data away, or the next after it that has another prompt: good and bad replies to the
    same prompts may well stand half the data apart.
    """

    trees: Examples
    max_length: int
    """Tokens of a prompt with its longest completion."""
    name: str = "the data"
    """What a message calls it."""
    partners: Indices = field(init=False, repr=False, compare=False)
    """Whose completions each prompt gets, (examples,)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "partners", self._partners())

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, index: int) -> Tree:
        own, other = self.trees[index], self.trees[int(self.partners[index])]
        room = max(0, self.max_length - len(own.prompt))
        completions = tuple(ids[:room] for ids in other.completions)
        return replace(other, prompt=own.prompt, completions=completions, trained=tuple(each[:room] for each in other.trained))

    @property
    def origins(self) -> Sequence[str]:
        """Where each prompt stood."""
        return self.trees.origins

    def row_lengths(self, *, share_prompts: bool) -> Indices:
        """Tokens that each example takes in a row."""
        prompts, completions, counts = self._sizes
        return completions + (prompts if share_prompts else prompts * counts)

    def _partners(self) -> Indices:
        """In one pass, however many prompts are equal."""
        numbers: dict[bytes, int] = {}
        prompt = np.array([numbers.setdefault(_digest(self.trees[i]), len(numbers)) for i in range(len(self))], np.int64)
        if len(numbers) < 2:
            raise OnePromptError(
                f"{self.name}: its {len(self):,} examples have one and the same prompt, and the objective compares with completions of "
                "other prompts; give it data of several, or set that comparison off"
            )
        away = (np.arange(len(self)) + len(self) // 2) % len(self)
        # The last of each run of equal prompts; what comes after it has another.
        ends = np.flatnonzero(prompt != np.roll(prompt, -1))
        after = (ends[np.searchsorted(ends, away) % len(ends)] + 1) % len(self)
        return np.where(prompt[away] == prompt, after, away)

    @cached_property
    def _sizes(self) -> tuple[Indices, Indices, Indices]:
        """Tokens of each prompt and of its completions, and their number, (examples,) each."""
        trees = (self[i] for i in range(len(self)))
        sizes = [(len(tree.prompt), sum(map(len, tree.completions)), len(tree.completions)) for tree in trees]
        prompts, completions, counts = np.array(sizes, np.int64).T
        return prompts, completions, counts


def _digest(tree: Tree) -> bytes:
    return hashlib.blake2b(tree.prompt.astype("<i4").tobytes(), digest_size=16).digest()

"""Prompts with the completions of others, by which an objective tells how far the policy has moved in general."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from zephyr_kit.batch import Tree
from zephyr_kit.trees import Examples, Indices


@dataclass(frozen=True)
class Mismatched:
    """The same examples, each with the completions of the one half the data away, cut to the same length.

    Not of its neighbour, which may have the same prompt.
    """

    trees: Examples
    max_length: int
    """Tokens of a prompt with its longest completion."""

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, index: int) -> Tree:
        own, other = self.trees[index], self.trees[(index + len(self) // 2) % len(self)]
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

    @cached_property
    def _sizes(self) -> tuple[Indices, Indices, Indices]:
        """Tokens of each prompt and of its completions, and their number, (examples,) each."""
        trees = (self[i] for i in range(len(self)))
        sizes = [(len(tree.prompt), sum(map(len, tree.completions)), len(tree.completions)) for tree in trees]
        prompts, completions, counts = np.array(sizes, np.int64).T
        return prompts, completions, counts

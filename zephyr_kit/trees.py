"""Tokenised examples in memory, where there are too few of them for the arrays of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from zephyr_kit.batch import Tree

Indices = npt.NDArray[np.int64]


class Examples(Protocol):
    """Tokenised examples by index: a corpus, or a few in memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tree: ...

    @property
    def origins(self) -> Sequence[str]:
        """Where each example stood."""
        ...

    def row_lengths(self, *, share_prompts: bool) -> Indices:
        """Tokens that each example takes in a row."""
        ...


@dataclass(frozen=True)
class Trees:
    """Trees in a list, with the face of a corpus."""

    trees: Sequence[Tree]

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, index: int) -> Tree:
        return self.trees[index]

    @property
    def lengths(self) -> Indices:
        """Tokens of each example, its prompt counted once."""
        return np.array([tree.num_tokens for tree in self.trees], np.int64)

    def row_lengths(self, *, share_prompts: bool) -> Indices:
        """Tokens that each example takes in a row."""
        return np.array([tree.row_length(share_prompts=share_prompts) for tree in self.trees], np.int64)

    @property
    def origins(self) -> Sequence[str]:
        """Where each example stood."""
        return [f"example {number}" for number in range(len(self.trees))]

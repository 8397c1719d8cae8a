"""Random examples and scores to try plugins on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.protocols import Scores


def random_trees(count: int, completions: int, *, seed: int = 0, vocabulary: int = 50, longest: int = 8) -> list[Tree]:
    """Token trees with prompts and completions of uneven length, all trained.

    Ratings fall from the first completion of an example to its last, by gaps that vary; the first is rated 1 or 0 in turn.
    """
    draw, fall = np.random.default_rng(seed), np.random.default_rng((seed, 1))

    def ids(low: int, high: int) -> np.ndarray:
        return draw.integers(3, vocabulary, draw.integers(low, high)).astype(np.int32)

    trees = []
    for number in range(count):
        texts = tuple(ids(1, longest) for _ in range(completions))
        falls = np.append(0.0, fall.uniform(0.25, 2.0, completions - 1)).cumsum()
        ratings = tuple((number % 2 - falls).tolist())
        trees.append(Tree(ids(1, longest + 1), texts, tuple(np.ones(len(text), np.bool_) for text in texts), ratings))
    return trees


def random_scores(trees: Sequence[Tree], *, seed: int, scale: float = 4.0, needs_gradient: bool = False) -> Scores:
    """Random log-probabilities for the completions of these trees, in float64."""
    batch = lay_out(trees)
    generator = torch.Generator().manual_seed(seed)
    logp_M = -torch.rand(len(batch.target_M), generator=generator, dtype=torch.float64) * scale
    return Scores(logp_M.requires_grad_(needs_gradient), batch.sequence_M, batch.num_sequences, batch.rating_N)

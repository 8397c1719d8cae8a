"""Examples laid end to end, without padding.

Tensor names carry their shape: T tokens, M targets, R sources of targets, N sequences (completions), S segments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Tree:
    """Token ids of a prompt, of the completions that follow it, and which of those are trained."""

    prompt: Ids
    completions: tuple[Ids, ...]
    trained: tuple[Flags, ...]
    ratings: tuple[float, ...] = ()
    """What the data says of each completion, higher is better, NaN where nothing; empty where it says nothing of any."""

    @property
    def num_tokens(self) -> int:
        """Tokens with the prompt counted once: the measure that steps are counted in."""
        return len(self.prompt) + sum(map(len, self.completions))

    @property
    def targets(self) -> tuple[Flags, ...]:
        """Which tokens of each completion are asked for: the trained ones, but not a first one that nothing comes before."""
        if len(self.prompt):
            return self.trained
        return tuple(trained & (np.arange(len(trained)) > 0) for trained in self.trained)

    def row_length(self, *, share_prompts: bool) -> int:
        """Tokens that it takes in a row."""
        return self.num_tokens + (0 if share_prompts else len(self.prompt) * (len(self.completions) - 1))


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole examples in one row of T tokens.

    A segment attends to itself causally, and to the whole of its parent segment if it has
    one (-1: none). The parents come first, then their children in the order of their parents,
    then segments by themselves: so a kernel finds all that is shared, and all that shares it,
    in one piece each. Target m is the token that should follow position `source_M[m]`, and
    belongs to completion `sequence_M[m]`; two completions may share a source, and `read_R` holds
    each source once, in order. `rating_N` is what the data says of each completion. `lengths`
    (S,), `parents` (S,) and `counts` (N,), the targets of each completion, repeat on the host
    what is looped over; in `prepared` kernels keep what they make of the row once, for all
    layers, under keys that begin with the name of their module.
    """

    tokens_T: Tensor
    positions_T: Tensor
    segment_T: Tensor
    parent_S: Tensor
    source_M: Tensor
    target_M: Tensor
    sequence_M: Tensor
    read_R: Tensor
    rating_N: Tensor
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    counts: tuple[int, ...]
    prepared: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        num_shared = max(self.parents, default=-1) + 1
        children = sorted(parent for parent in self.parents if parent >= 0)
        num_alone = len(self.parents) - num_shared - len(children)
        if num_alone < 0 or list(self.parents) != [-1] * num_shared + children + [-1] * num_alone:
            raise ValueError(f"segments with the parents {self.parents}: parents come first, then children in their order, then the rest")

    @property
    def num_sequences(self) -> int:
        """Completions."""
        return len(self.counts)

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, copied without waiting for it."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with each of its tensors changed."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        changed: dict[str, Any] = {name: change(value) for name, value in values if isinstance(value, Tensor)}
        return replace(self, **changed)


class _Row:
    """A row under construction."""

    def __init__(self) -> None:
        self.tokens: list[Ids] = []
        self.starts: list[int] = []
        self.parents: list[int] = []
        self.targets: list[tuple[npt.NDArray[np.int64], Ids]] = []
        self.ratings: list[float] = []
        self.size = 0

    def segment(self, *pieces: Ids, start: int = 0, parent: int = -1) -> int:
        """Append a segment; return the index in the row of its first token."""
        first = self.size
        ids = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        self.tokens.append(ids)
        self.starts.append(start)
        self.parents.append(parent)
        self.size += len(ids)
        return first

    def sequence(self, first: int, before: int, ids: Ids, is_target: Flags, rating: float) -> None:
        """Append the targets of a completion whose first token is at `first`, the one before it, if any, at `before`."""
        self.ratings.append(rating)
        source = np.arange(first - 1, first + len(ids) - 1)
        if len(ids):
            source[0] = before
        self.targets.append((source[is_target], ids[is_target]))

    def batch(self) -> Batch:
        lengths = [len(ids) for ids in self.tokens]
        positions = [np.arange(start, start + length) for start, length in zip(self.starts, lengths, strict=True)]
        counts = [len(source) for source, _ in self.targets]
        is_read = np.zeros(self.size, np.bool_)
        for source, _ in self.targets:
            is_read[source] = True
        sequences = np.repeat(np.arange(len(counts)), counts)
        return Batch(
            _tensor(self.tokens),
            _tensor(positions),
            torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
            torch.tensor(self.parents, dtype=torch.long),
            _tensor([source for source, _ in self.targets]),
            _tensor([ids for _, ids in self.targets]),
            torch.from_numpy(sequences),
            torch.from_numpy(np.flatnonzero(is_read)),
            torch.tensor(self.ratings, dtype=torch.float32),
            tuple(lengths),
            tuple(self.parents),
            tuple(counts),
        )


def lay_out(trees: Sequence[Tree], *, share_prompts: bool = True) -> Batch:
    """Lay examples end to end; with sharing, a prompt of several completions is written once."""
    row = _Row()
    forks = [i for i, tree in enumerate(trees) if share_prompts and len(tree.prompt) and len(tree.completions) > 1]
    trunks = {i: row.segment(trees[i].prompt) for i in forks}
    branches = {
        i: [row.segment(ids, start=len(trees[i].prompt), parent=parent) for ids in trees[i].completions] for parent, i in enumerate(forks)
    }
    for i, tree in enumerate(trees):
        size = len(tree.prompt)
        ratings = tree.ratings or (math.nan,) * len(tree.completions)
        for number, (ids, is_target, rating) in enumerate(zip(tree.completions, tree.targets, ratings, strict=True)):
            if i in trunks:
                row.sequence(branches[i][number], trunks[i] + size - 1, ids, is_target, rating)
            else:
                first = row.segment(tree.prompt, ids) + size
                row.sequence(first, first - 1, ids, is_target, rating)
    return row.batch()


def idle() -> Batch:
    """One token that nothing is asked about, for a rank that has no examples and takes part all the same: models read no empty rows."""
    row = _Row()
    row.segment(np.zeros(1, np.int32))
    return row.batch()


def visible(batch: Batch, *, window: int | None = None) -> Tensor:
    """Dense (T, T) mask of who sees whom: the definition that every attention kernel must match.

    `window` is the sliding window of models that have one: a token sees itself and the
    `window - 1` positions before it.
    """
    segment, index = batch.segment_T, torch.arange(len(batch.segment_T), device=batch.segment_T.device)
    own = (segment[:, None] == segment[None, :]) & (index[:, None] >= index[None, :])
    seen = own | (batch.parent_S[segment][:, None] == segment[None, :])
    if window is not None:
        seen &= batch.positions_T[:, None] - batch.positions_T[None, :] < window
    return seen


def _tensor(arrays: Sequence[npt.NDArray[np.integer]]) -> Tensor:
    if not arrays:
        return torch.empty(0, dtype=torch.long)
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64))

"""The keys and values of replies under way, with room to grow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

COLUMNS_AHEAD = 64
"""So many tokens are read before what is there already must be copied; transformers' own layer copies it for each."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values, (rows, heads, columns, size) each: the filled part of two larger tensors."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.fill(key_states, value_states)
            return self.keys, self.values
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self._all_keys.shape[2]:
            self.fill(self.keys, self.values)
        self.keys, self.values = self._all_keys[:, :, :end], self._all_values[:, :, :end]
        self.keys[:, :, start:], self.values[:, :, start:] = key_states, value_states
        return self.keys, self.values

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Hold these, with room for more."""
        columns = keys.shape[2]
        self._all_keys, self._all_values = (pad(part, (0, 0, 0, COLUMNS_AHEAD)) for part in (keys, values))
        self.keys, self.values = self._all_keys[:, :, :columns], self._all_values[:, :, :columns]


def empty_cache() -> Cache:
    """A cache whose layers keep every column, those outside a sliding window too: rows of other lengths may join."""
    return Cache(layer_class_to_replicate=RoomyLayer)


def select(cache: Cache, index: Tensor, *, first: int = 0) -> None:
    """Keep these rows, each as often as it is named, from column `first` on."""
    for layer in cache.layers:
        layer.fill(layer.keys[index, :, first:], layer.values[index, :, first:])


def join(cache: Cache, other: Cache) -> None:
    """Add the rows of another cache; both end in the same column."""
    for mine, theirs in zip(cache.layers, other.layers, strict=True):
        mine.fill(*(side_by_side(*both) for both in ((mine.keys, theirs.keys), (mine.values, theirs.values))))


def side_by_side(one: Tensor, other: Tensor) -> Tensor:
    """The rows of both, with as many empty columns before them as it takes."""
    columns = max(one.shape[2], other.shape[2])
    return torch.cat([pad(part, (0, 0, columns - part.shape[2], 0)) for part in (one, other)])

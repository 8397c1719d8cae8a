"""Runs of words of many texts, to be found again in others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from zkit_filters.shingles import Hashes, shingles, word_hashes

MARKED_BITS = 24
"""First bits of a hash by which nearly all that is not there is told at once."""


@dataclass(frozen=True)
class Passages:
    """Hashes of runs of words in ascending order, which collection each comes from, and how long runs are."""

    hashes: Hashes
    collections: npt.NDArray[np.int32]
    lengths: tuple[int, ...]
    """In words, the longest first."""

    @classmethod
    def of(cls, collections: Sequence[Iterable[str]], size: int, *, shortest: int) -> Passages:
        """Every run of `size` words of every text; the whole of shorter ones that have `shortest` words or more."""
        runs: list[Hashes] = [np.empty(0, np.uint64)]
        numbers, lengths = [0], {size}
        for number, texts in enumerate(collections):
            for text in texts:
                words = word_hashes(text)
                length = min(size, len(words))
                if length >= min(shortest, size):
                    runs.append(shingles(words, length))
                    numbers.append(number)
                    lengths.add(length)
        # `unique` gives the first place of each hash: the first collection that has it is named.
        hashes, places = np.unique(np.concatenate(runs), return_index=True)
        owners = np.repeat(np.array(numbers, np.int32), [len(run) for run in runs])
        return cls(hashes, owners[places], tuple(sorted(lengths, reverse=True)))

    def find(self, words: Hashes) -> tuple[int, int] | None:
        """The collection of the first run that these words hold, and its length; None if they hold none."""
        for length in self.lengths:
            runs = shingles(words, length)
            likely = runs[self._marks[runs >> np.uint64(64 - MARKED_BITS)]]
            places = np.searchsorted(self.hashes, likely)
            for run, place in zip(likely.tolist(), places.tolist(), strict=True):
                if place < len(self.hashes) and run == int(self.hashes[place]):
                    return int(self.collections[place]), length
        return None

    @cached_property
    def _marks(self) -> npt.NDArray[np.bool_]:
        """Whether any hash begins with these bits: a search among millions misses the cache, this hardly does."""
        marks = np.zeros(1 << MARKED_BITS, np.bool_)
        marks[self.hashes >> np.uint64(64 - MARKED_BITS)] = True
        return marks

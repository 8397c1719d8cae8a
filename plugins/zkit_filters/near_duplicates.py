"""Dialogues that nearly repeat an earlier one.

MinHash (Broder 1997) estimates the share of runs of words that two dialogues have in common, and
locality-sensitive hashing finds the earlier ones that are worth comparing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Gt, Interval

from zephyr_kit.config import plain
from zephyr_kit.example import Example
from zephyr_kit.protocols import Memory, Verdict
from zkit_filters.dialogue import whole_text
from zkit_filters.shingles import shingles, word_hashes

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

SCHEME = "affine32"
"""Of datasketch's, 32 bits for each permutation."""
EDITION = 1


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Keeps the first of dialogues that are nearly the same, in whatever order they come."""

    threshold: Annotated[float, Interval(ge=0.3, lt=1)] = 0.8
    """The share of runs of words in common from which on two are the same (Jaccard, as estimated)."""
    num_permutations: Annotated[int, Interval(ge=16, le=1024)] = 128
    """More of them estimate better, and take longer."""
    words: Annotated[int, Gt(0)] = 5
    """How many words make a run."""

    def look(self, example: Example) -> Verdict:
        words = word_hashes(whole_text(example))
        if not len(words):
            return Verdict(example)
        runs = np.unique(shingles(words, min(self.words, len(words))) >> np.uint64(32))
        minhash = self._blank.copy()
        minhash.update_batch(runs.tolist())
        return Verdict(example, trace=minhash.digest().astype("<u4").tobytes())

    @contextmanager
    def memory(self, folder: Path, *, first: int) -> Iterator[Memory]:
        from zkit_filters.signatures import Signatures

        bands = self._bands()
        with closing(Signatures(folder, self.threshold, num_bands=bands.b, band_size=bands.r)) as signatures:
            signatures.forget(first)
            yield signatures

    def fingerprint(self) -> str:
        made_by = {"scheme": SCHEME, "datasketch": version("datasketch")}
        return json.dumps({"use": "near_duplicates", "edition": EDITION, **made_by, **plain(self)}, sort_keys=True)

    def problems(self) -> Sequence[str]:
        try:
            self._bands()
        except ValueError:
            told = f"`threshold` = {self.threshold} is told from 1 only with more than {self.num_permutations} permutations"
            return [f"{told}: set a lower one, or more `num_permutations`"]
        return []

    def miniature(self, folder: Path) -> NearDuplicates:
        return self

    def _bands(self) -> MinHashLSH:
        from datasketch import MinHashLSH

        return MinHashLSH(threshold=self.threshold, num_perm=self.num_permutations)

    @cached_property
    def _blank(self) -> MinHash:
        """Copied for each dialogue: to draw the permutations takes longer than to use them."""
        from datasketch import MinHash

        return MinHash(self.num_permutations, seed=1, hashfunc=int, scheme=SCHEME)

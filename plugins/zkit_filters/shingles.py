"""Words and runs of words as 64-bit hashes, a whole text at a time.

Letters, digits and marks make words, in small letters; all else stands between them. In scripts
that are written without spaces each character is a word. Hashes are the same in every process.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

BETWEEN, LETTER, WHOLE_WORD = 0, 1, 2
"""What a character is to a word."""

UNSPACED = ((0x3040, 0x3100), (0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x32000))
"""Kana and Chinese characters: code points from, to."""

NUM_TABLED = 0x33480
BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2**64."""


def word_hashes(text: str) -> Hashes:
    """A hash of each word, in order."""
    codes = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[np.minimum(codes, NUM_TABLED)]
    inside = kinds != BETWEEN
    begins = inside.copy()
    begins[1:] &= ~inside[:-1] | (kinds[1:] == WHOLE_WORD) | (kinds[:-1] == WHOLE_WORD)
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.empty(0, np.uint64)
    # A polynomial in BASE over the characters of each word: the powers count from the text's start,
    # which the inverse powers take back.
    powers, inverses = _powers(1 << max(10, len(codes).bit_length()))
    terms = _mixed(codes.astype(np.uint64)) * powers[: len(codes)] * inside
    return _mixed(np.add.reduceat(terms, starts) * inverses[starts])


def shingles(words: Hashes, size: int) -> Hashes:
    """A hash of each run of `size` words; empty when there are fewer."""
    count = len(words) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    total = np.full(count, size, np.uint64)
    for place in range(size):
        total = total * np.uint64(BASE) + words[place : place + count]
    return _mixed(total)


def _mixed(values: Hashes) -> Hashes:
    """Every bit spread over all others (the finaliser of splitmix64)."""
    values = values + np.uint64(BASE)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=1)
def _kinds() -> npt.NDArray[np.uint8]:
    """What each character is to a word; the last entry stands for all that follow."""
    kinds = np.zeros(NUM_TABLED + 1, np.uint8)
    for code in range(NUM_TABLED):
        if unicodedata.category(chr(code))[0] in "LNM":
            kinds[code] = LETTER
    for start, end in UNSPACED:
        kinds[start:end] = np.where(kinds[start:end] == LETTER, WHOLE_WORD, BETWEEN)
    return kinds


@lru_cache(maxsize=32)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Powers of BASE and of its inverse, from 0 on, modulo 2**64."""
    ones = np.ones(count, np.uint64)
    pairs = []
    for base in (BASE, pow(BASE, -1, 1 << 64)):
        ones[1:] = base
        pairs.append(np.multiply.accumulate(ones))
    return pairs[0], pairs[1]

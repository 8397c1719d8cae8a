"""Words that tell where a capital belongs, and where it does not."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache

from zkit_filters.lists import packaged

VOCABULARY_FILE = "capitals.toml"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The lists of `capitals.toml`, which says what each is for."""

    abbreviations: frozenset[str]
    stay_small: frozenset[str]
    begin_code: frozenset[str]
    follow_i: frozenset[str]
    precede_i: frozenset[str]
    never_follow_i: frozenset[str]
    names: frozenset[str]


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """The words that come with this package."""
    lists = tomllib.loads(packaged(VOCABULARY_FILE))
    return Vocabulary(**{name: frozenset(words.split()) for name, words in lists.items()})

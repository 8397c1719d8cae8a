"""Dialogues that hold what a model will be examined on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

from annotated_types import Gt

from zephyr_kit import ZkitError
from zephyr_kit.example import BadRow, Example, Removed
from zephyr_kit.protocols import DataSource, Verdict
from zkit_filters.dialogue import messages, whole_text
from zkit_filters.passages import Passages
from zkit_filters.shingles import word_hashes

EDITION = 1
LONGER_THAN_ALL = 100_000
"""Words."""


@dataclass(frozen=True)
class Decontaminate:
    """Removes dialogues that share a run of words with a text of an evaluation set, case and punctuation aside."""

    against: tuple[DataSource, ...]
    """The evaluation sets; every message of prompts and completions is a text."""
    ngram: Annotated[int, Gt(1)] = 10
    """How many words in a row make a run."""
    shortest: Annotated[int, Gt(1)] = 6
    """A text shorter than a run is looked for as a whole, if it has so many words; shorter ones are everybody's."""

    def __post_init__(self) -> None:
        if not self.against:
            raise ValueError('needs at least one table in `against`, as in against = [{ use = "jsonl", path = "mt_bench.jsonl" }]')

    def look(self, example: Example) -> Verdict:
        found = self._passages.find(word_hashes(whole_text(example)))
        if found is None:
            return Verdict(example)
        number, length = found
        return Verdict(None, f"shares {length} words with {_name(self.against[number])}")

    def memory(self, folder: Path, *, first: int) -> None:
        return None

    def fingerprint(self) -> str:
        sources = [source.fingerprint() for source in self.against]
        options = {"ngram": self.ngram, "shortest": self.shortest}
        return json.dumps({"use": "decontaminate", "edition": EDITION, **options, "against": sources}, sort_keys=True)

    def problems(self) -> Sequence[str]:
        return [f"`against`: {problem}" for source in self.against for problem in source.problems()]

    def miniature(self, folder: Path) -> Decontaminate:
        """Generated rows are all made of the same sentences, so that only runs longer than any of them are looked for."""
        against = tuple(source.miniature(folder / f"against-{number}") for number, source in enumerate(self.against))
        return replace(self, against=against, ngram=LONGER_THAN_ALL, shortest=LONGER_THAN_ALL)

    @cached_property
    def _passages(self) -> Passages:
        """Of all evaluation sets: read when the first dialogue is looked at, once in each process."""
        return Passages.of([_texts(source) for source in self.against], self.ngram, shortest=self.shortest)


def _texts(source: DataSource) -> Iterator[str]:
    for row in source.rows():
        if isinstance(row, BadRow):
            raise ZkitError(f"{row.origin}: {row.reason}: what cannot be read of an evaluation set cannot be kept out of the data")
        if not isinstance(row, Removed):
            yield from (message.content for message in messages(row))


def _name(source: DataSource) -> str:
    """What the user calls it: most sources have a path."""
    return str(getattr(source, "path", None) or type(source).__name__)

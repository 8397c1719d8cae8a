"""Rows, and what they pass on their way into a corpus, in miniature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zephyr_kit import ZkitError
from zephyr_kit.admission import Door
from zephyr_kit.batch import Tree
from zephyr_kit.binarise import Paired
from zephyr_kit.corpus import Corpus, prepare
from zephyr_kit.example import BadRow, Example, ExampleError, Message, Removed
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import Verdict

Row = Example | BadRow | Removed
DOOR = Door(1, 64, "cut")


@dataclass(frozen=True)
class Letters:
    """A tokenizer: a token for each letter, the assistant's trained; `#` cannot be written, `!` stops the run."""

    name: str = "letters"
    stop: str = "!"

    def encode(self, example: Example) -> Tree:
        texts = ["".join(message.content for message in part) for part in (example.prompt, *example.completions)]
        if "#" in "".join(texts):
            raise ExampleError("holds a #")
        if self.stop in "".join(texts):
            raise ZkitError("cannot go on")
        prompt, *completions = (np.array([ord(letter) for letter in text], np.int32) for text in texts)
        return Tree(prompt, tuple(completions), tuple(self.trained(completion) for completion in example.completions))

    def trained(self, completion: Sequence[Message]) -> np.ndarray:
        return np.concatenate([np.full(len(message.content), message.role == "assistant") for message in completion])

    def fingerprint(self) -> str:
        return self.name


@dataclass(frozen=True)
class Rows:
    """A source of given rows that notes how often it is read."""

    given: tuple[Row, ...]
    name: str = "rows"
    reads: list[int] = field(default_factory=list, compare=False)

    def rows(self) -> Iterator[Row]:
        self.reads.append(len(self.given))
        return iter(self.given)

    def fingerprint(self) -> str:
        return self.name

    def problems(self) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> Rows:
        return self


@dataclass(frozen=True)
class NoLetter:
    """A filter: removes what holds a letter."""

    letter: str

    def look(self, example: Example) -> Verdict:
        parts = (example.prompt, *example.completions)
        held = any(self.letter in message.content for part in parts for message in part)
        return Verdict(None, f"holds {self.letter}") if held else Verdict(example)

    def memory(self, folder: Path, *, first: int) -> None:
        return None

    def fingerprint(self) -> str:
        return f"no {self.letter}"

    def problems(self) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> NoLetter:
        return replace(self, letter="#")


@dataclass(frozen=True)
class Against:
    """Pairs of one completion with each other one; a stand-in for `Binarise`."""

    one: str = "first"

    def apply(self, example: Example, row: int) -> Paired:
        left = [reply for reply in example.completions if reply[0].content]
        out = ("blank",) * (len(example.completions) - len(left))
        ranked = left if self.one == "first" else left[::-1]
        made = tuple(replace(example, completions=(ranked[0], each), origin=f"{example.origin} (row {row})") for each in ranked[1:])
        return Paired(made, out, "" if made else "fewer than two completions")


def example(prompt: str, *completions: str, line: int = 0) -> Example:
    replies = tuple((Message("assistant", text),) for text in completions)
    return Example((Message("user", prompt),), replies, origin=f"data.jsonl:{line}")


def pairs(*texts: str) -> Rows:
    return Rows(tuple(example(*text.split("|"), line=number) for number, text in enumerate(texts, 1)))


def made(source: Rows, cache: Path, door: Door = DOOR, **how: Any) -> Corpus:
    return prepare([Portion(source, **how)], Letters(), door, cache=cache)


def quarantine(corpus: Corpus) -> list[dict[str, str]]:
    return list(corpus.quarantined())

"""Which rows enter a corpus, as how many examples, and the work of tokenising them."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from zephyr_kit.batch import Flags, Tree
from zephyr_kit.binarise import Binarise
from zephyr_kit.example import BadRow, Example, ExampleError, Removed, check
from zephyr_kit.places import printable
from zephyr_kit.protocols import Tokenizer
from zephyr_kit.workers import in_workers

TooLong = Literal["cut", "drop", "refuse"]
Fate = Literal["kept", "cut", "dropped", "bad", "removed"]


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of an example, or of a row from which none came."""

    origin: str
    fate: Fate
    tree: Tree | None = None
    reason: str | None = None
    """Why it was not kept as it is."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", printable(self.origin))
        object.__setattr__(self, "reason", None if self.reason is None else printable(self.reason))

    def line(self) -> str:
        """Of the list of rows that were not taken whole."""
        return json.dumps({"origin": self.origin, "fate": self.fate, "reason": self.reason}, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Door:
    """What an example must satisfy to enter a corpus."""

    completions: int
    max_length: int
    too_long: TooLong
    rated: bool = False
    """Whether each completion must have a score."""

    def admit(self, row: Example | BadRow, tokenizer: Tokenizer) -> Admission:
        """The example's tree, or why there is none."""
        if isinstance(row, BadRow):
            return Admission(row.origin, "bad", reason=row.reason)
        try:
            self.check(row)
            return self._fit(row.origin, replace(tokenizer.encode(row), ratings=row.scores or ()))
        except ExampleError as error:
            return Admission(row.origin, "bad", reason=str(error))

    def check(self, example: Example) -> None:
        """Refuse, without a tokenizer, what could not be trained on rightly."""
        count = len(example.completions)
        if count > self.completions:
            # Said first: completions that are never compared may be blank, or alike.
            rule = {1: "best", 2: "best_random"}.get(self.completions, "ranked")
            advice = f'to choose among them, add binarise = {{ rule = "{rule}" }} to the table of its data'
            raise ExampleError(f"has {count} completions, but the objective takes {self.completions}: {advice}")
        check(example)
        if count < self.completions:
            rule = '"best_random"' if self.completions == 2 else f'"ranked", take = {self.completions}'
            advice = f"where rows have more of them, with scores, binarise = {{ rule = {rule} }} takes so many"
            raise ExampleError(f"has {count} completion(s), but the objective compares {self.completions}: {advice}")
        if example.scores is not None and len(example.scores) != count:
            raise ExampleError(f"has {len(example.scores)} score(s) for {count} completion(s)")
        if self.rated and not (example.scores and all(map(math.isfinite, example.scores))):
            raise ExampleError("has a completion without a score, but the objective learns from scores")

    def _fit(self, origin: str, tree: Tree) -> Admission:
        if not len(tree.prompt):
            tree = replace(tree, trained=tuple(_all_but_first(flags) for flags in tree.trained))
        _check_learnable(tree, "has no trained token", "its completions are identical in tokens")
        length = len(tree.prompt) + max(map(len, tree.completions))
        if length <= self.max_length:
            return Admission(origin, "kept", tree)
        limit = f"max_length = {self.max_length} tokens"
        if self.too_long != "cut":
            return Admission(origin, "dropped" if self.too_long == "drop" else "bad", reason=f"longer than {limit}")
        room = max(0, self.max_length - len(tree.prompt))
        cut = replace(tree, completions=tuple(ids[:room] for ids in tree.completions), trained=tuple(each[:room] for each in tree.trained))
        _check_learnable(cut, f"its prompt leaves nothing to train within {limit}", f"its completions are identical within {limit}")
        return Admission(origin, "cut", cut, f"cut to {limit}")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row at the door."""

    row: Example | BadRow | Removed
    number: int = 0
    """Its place among the rows of its data."""
    binarise: Binarise | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a row: one admission, or more where several examples were made of it."""

    admissions: tuple[Admission, ...]
    left_out: tuple[str, ...] = ()
    """Why completions of it were not considered."""
    notes: tuple[str, ...] = ()
    """What its source changed in it."""


def admit(rows: Iterator[Arrival], tokenizer: Tokenizer, door: Door) -> Generator[Entry]:
    """Binarise and tokenise, in worker processes once the data is large enough to repay starting them."""
    return in_workers(partial(_enter, tokenizer, door), rows)


def _enter(tokenizer: Tokenizer, door: Door, arrival: Arrival) -> Entry:
    row = arrival.row
    if isinstance(row, Removed):
        return Entry((Admission(row.origin, "removed", reason=f"{row.by}: {row.reason}"),))
    if isinstance(row, BadRow):
        return Entry((door.admit(row, tokenizer),))
    if arrival.binarise is None:
        return Entry((door.admit(row, tokenizer),), notes=row.notes)
    try:
        paired = arrival.binarise.apply(row, arrival.number)
    except ExampleError as error:
        return Entry((Admission(row.origin, "bad", reason=str(error)),), notes=row.notes)
    made = tuple(door.admit(example, tokenizer) for example in paired.examples)
    return Entry(made or (Admission(row.origin, "removed", reason=f"binarise: {paired.reason}"),), paired.left_out, row.notes)


def _check_learnable(tree: Tree, untrained: str, identical: str) -> None:
    if not all(flags.any() for flags in tree.trained):
        raise ExampleError(untrained)
    if len({ids.tobytes() for ids in tree.completions}) < len(tree.completions):
        raise ExampleError(identical)


def _all_but_first(flags: Flags) -> Flags:
    """Without a prompt, nothing comes before the first token from which it could be predicted."""
    return np.concatenate([np.zeros(1, np.bool_), flags[1:]])

"""What a data source yields: dialogues that end in one or more completions, or a bad row."""

from __future__ import annotations

import difflib
import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

TEXT = "text"
"""The role of a message that is written verbatim, outside any chat template."""

ROLES = ("system", "user", "assistant", "tool", TEXT)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the completions that follow it.

    One completion is a demonstration; two are a preference pair, the chosen one first; more
    are ranked, the best first. A multi-turn demonstration has everything from its first
    assistant turn on as its completion; only assistant (and verbatim) turns are trained.
    """

    prompt: tuple[Message, ...]
    completions: tuple[tuple[Message, ...], ...]
    scores: tuple[float, ...] | None = None
    """One for each completion, higher is better; `math.nan` for one without a usable score, which binarisation leaves out."""
    origin: str = ""
    """Where the row stands, as `file:line`."""
    notes: tuple[str, ...] = ()
    """What its source changed in it, in words that can be counted: the same change, the same words."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be an example, and why."""

    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class Removed:
    """A row that was taken out on purpose: by what, and why."""

    origin: str
    by: str
    reason: str


class ExampleError(ValueError):
    """Why an example cannot be trained on."""


def check(example: Example) -> None:
    """Refuse what would train silently and wrongly: roles, empty turns, equal completions."""
    if not example.completions:
        raise ExampleError("no completion")
    for message in example.prompt:
        check_message(message)
    for number, completion in enumerate(example.completions):
        _check_completion(example.prompt, completion, completion_name(number, len(example.completions)))
    if len(set(example.completions)) < len(example.completions):
        raise ExampleError("chosen and rejected are identical" if len(example.completions) == 2 else "two completions are identical")


def _check_completion(prompt: Sequence[Message], completion: Sequence[Message], name: str) -> None:
    if not completion:
        raise ExampleError(f"{name} is empty")
    for message in completion:
        check_message(message)
    for place, message in (("begins", completion[0]), ("ends", completion[-1])):
        if message.role not in ("assistant", TEXT):
            raise ExampleError(f"{name} {place} with a {message.role} turn, not an assistant turn")
    if any(one.role == other.role == "assistant" for one, other in itertools.pairwise((*prompt[-1:], *completion))):
        raise ExampleError("two assistant turns follow each other")


def check_message(message: Message) -> None:
    """Refuse an unknown role, content that is no text, and a reply that says nothing."""
    if message.role not in ROLES:
        close = difflib.get_close_matches(str(message.role), ROLES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(ROLES)})"
        raise ExampleError(f"unknown role {message.role!r}{hint}")
    if not isinstance(message.content, str):
        raise ExampleError(f"content of a {message.role} turn is {type(message.content).__name__} {message.content!r}, not text")
    if message.role in ("assistant", TEXT) and is_blank(message.content):
        raise ExampleError(f"{'an assistant turn' if message.role == 'assistant' else 'the text'} is empty")


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: blanks, and characters of no width, which no model should learn to answer with."""
    return all(unicodedata.category(letter)[0] in "CZ" for letter in text)


def completion_name(number: int, count: int) -> str:
    """How a user calls completion `number` of `count`."""
    if count == 1:
        return "the completion"
    return ("chosen", "rejected")[number] if count == 2 else f"completion {number + 1}"

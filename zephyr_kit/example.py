"""What a data source yields: dialogues that end in one or more completions, or a bad row."""

from __future__ import annotations

import difflib
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
    origin: str = ""
    """Where the row stands, as `file:line`."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be an example, and why."""

    origin: str
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
        name = completion_name(number, len(example.completions))
        if not completion:
            raise ExampleError(f"{name} is empty")
        for message in completion:
            check_message(message)
        if completion[-1].role not in ("assistant", TEXT):
            raise ExampleError(f"{name} ends with a {completion[-1].role} turn, not an assistant turn")
    if len(set(example.completions)) < len(example.completions):
        raise ExampleError("chosen and rejected are identical" if len(example.completions) == 2 else "two completions are identical")


def check_message(message: Message) -> None:
    if message.role not in ROLES:
        close = difflib.get_close_matches(str(message.role), ROLES, n=1)
        raise ExampleError(f"unknown role {message.role!r}" + (f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(ROLES)})"))
    if not isinstance(message.content, str):
        raise ExampleError(f"content of a {message.role} turn is {type(message.content).__name__} {message.content!r}, not text")
    if message.role in ("assistant", TEXT) and not message.content.strip():
        raise ExampleError(f"{'an assistant turn' if message.role == 'assistant' else 'the text'} is empty")


def completion_name(number: int, count: int) -> str:
    """How a user calls completion `number` of `count`."""
    if count == 1:
        return "the completion"
    return ("chosen", "rejected")[number] if count == 2 else f"completion {number + 1}"

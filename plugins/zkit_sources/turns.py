"""Values of a row turned into text, numbers and messages, or refused with a reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from reprlib import Repr
from typing import Any

from zephyr_kit.example import ExampleError, Message

Row = Mapping[str, Any]
Turns = tuple[Message, ...]

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""A lone surrogate: JSON can write one, but no text file and no tokenizer can hold it."""

CONVERSATION_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "tool": "tool",
}


CALLS = ("tool_calls", "function_call")
"""Keys of a reply in OpenAI's format that hold what is no text."""
WEIGHTS = ("weight", "train", "training")
"""Keys by which OpenAI's format and axolotl's say whether a reply is to be learnt."""


class MissingColumnError(ExampleError):
    """A row lacks a column that its format needs."""

    def __init__(self, *names: str) -> None:
        super().__init__(f"no column {' or '.join(f'`{name}`' for name in names)}")
        self.names = names


def required(row: Row, name: str) -> Any:
    """The value of a column that must be there; it may still be null."""
    if name not in row:
        raise MissingColumnError(name)
    return row[name]


def text_of(value: Any, what: str) -> str:
    """`value` itself when it is text; nothing is ever turned into text."""
    if not isinstance(value, str):
        raise ExampleError(f"{what} is {describe(value)}, not text")
    half = None if value.isascii() else HALF_CHARACTER.search(value)
    if half:
        raise ExampleError(f"{what} holds half a surrogate pair (\\u{ord(half.group()):04x}), which is no text")
    return value


def number_of(value: Any, what: str) -> float:
    """A finite number; text and booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExampleError(f"{what} is {describe(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ExampleError(f"{what} is not finite")
    return number


def turns_of(value: Any, what: str, *, role: str = "role", content: str = "content", roles: Mapping[str, str] | None = None) -> Turns:
    """A list of objects as messages; `role` and `content` name their keys, `roles` translates."""
    if not isinstance(value, list):
        raise ExampleError(f"{what} is {describe(value)}, not a list of turns")
    turns = []
    for number, item in enumerate(value, 1):
        turn = turn_of(item, f"turn {number} of {what}", role=role, content=content)
        turns.append(replace(turn, role=(roles or {}).get(turn.role, turn.role)))
        if turns[-1].role == "assistant":
            _refuse_what_is_not_obeyed(item, f"turn {number} of {what}")
    return tuple(turns)


def turn_of(item: Any, where: str, *, role: str, content: str) -> Message:
    """One item of a list of turns."""
    if not isinstance(item, dict):
        raise ExampleError(f"{where} is {describe(item)}, not an object with `{role}` and `{content}`")
    for key in (role, content):
        if key not in item:
            raise ExampleError(f"{where} has no `{key}`" + (f" (it has {known_keys(item)})" if item else ""))
    name = text_of(item[role], f"role of {where}")
    if not isinstance(item[content], str):
        raise ExampleError(f"content of the {name} turn is {describe(item[content])}, not text ({where})")
    return Message(name, text_of(item[content], f"content of {where}"))


def _refuse_what_is_not_obeyed(item: Row, where: str) -> None:
    """A reply that does more than speak, or that is not to be learnt as the others are."""
    for key in CALLS:
        if item.get(key):
            raise ExampleError(f"{where} has `{key}`, which would be lost: write the call into its text, or leave the row out")
    for key in WEIGHTS:
        if item.get(key) not in (None, 1):
            raise ExampleError(f"{where} has `{key}` {item[key]!r}, but every reply is learnt alike: end before it, or drop the key")


def known_keys(item: Mapping[Any, Any]) -> str:
    """The first few keys of an object, for a message."""
    return ", ".join(f"`{str(key)[:40]}`" for key in list(item)[:6])


def describe(value: Any) -> str:
    """A value as a message shows it: its type and how it begins."""
    if value is None:
        return "null"
    writer = Repr()
    writer.maxstring = writer.maxother = 40
    writer.maxlist = writer.maxdict = 2
    return f"{type(value).__name__} {writer.repr(value)}"

"""Dialogues made of a few words."""

from __future__ import annotations

import dataclasses

from zephyr_kit.example import Example, Message

WORDS = "river stone lamp green quiet walks under seven bridges before morning light came over hills and cold bread waits"


def dialogue(*turns: str, origin: str = "rows.jsonl:1") -> Example:
    """User and assistant in turn."""
    said = tuple(Message(("user", "assistant")[number % 2], turn) for number, turn in enumerate(turns))
    return Example(said[:1], (said[1:],), origin=origin)


def pair(prompt: str, chosen: str, rejected: str) -> Example:
    replies = tuple((Message("assistant", reply),) for reply in (chosen, rejected))
    return Example((Message("user", prompt),), replies, (8.0, 3.0), origin="pairs.jsonl:7")


def story(seed: int, length: int = 60) -> str:
    """Words in an order of its own."""
    words = WORDS.split()
    return " ".join(words[(seed * 7 + number * number * (seed + 3) + number) % len(words)] for number in range(length))


def numbered(rows: list[Example]) -> list[Example]:
    return [dataclasses.replace(row, origin=f"rows.jsonl:{number}") for number, row in enumerate(rows, 1)]

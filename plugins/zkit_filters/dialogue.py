"""The messages of an example, whichever completion they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

from zephyr_kit.example import Example, Message


def messages(example: Example) -> Iterator[Message]:
    """Those of the prompt, then those of each completion."""
    return chain(example.prompt, *example.completions)


def whole_text(example: Example) -> str:
    """All that is said, a line break between messages."""
    return "\n".join(message.content for message in messages(example))


def rewritten(example: Example, rewrite: Callable[[Message], Message]) -> Example:
    """The example with each of its messages rewritten; origin and scores stay."""
    prompt = tuple(map(rewrite, example.prompt))
    completions = tuple(tuple(map(rewrite, completion)) for completion in example.completions)
    return replace(example, prompt=prompt, completions=completions)

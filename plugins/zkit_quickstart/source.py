"""The quickstart's data: generated row by row, the same ones on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from annotated_types import Gt

from zephyr_kit.example import Example
from zkit_quickstart.dialogue import chat_row, preference_row, prompt_row, text_row

Part = Literal["text", "chat", "preference", "prompt"]


@dataclass(frozen=True, slots=True)
class QuickstartData:
    """Rows of the miniature world.

    `text` is plain stories, `chat` dialogues with an imperfect teacher, `preference` pairs of
    its answers, the better one first, `prompt` dialogues that wait for an answer. `held_out`
    rows are about combinations of animal, thing and place that no `train` row has.
    """

    part: Part
    split: Literal["train", "held_out"] = "train"
    count: Annotated[int, Gt(0)] = 2000
    """How many rows; fewer are the first of more."""
    seed: int = 0

    def rows(self) -> Iterator[Example]:
        """Every row, each from a random state of its own."""
        for number in range(self.count):
            random = Random(f"quickstart/{self.part}/{self.split}/{self.seed}/{number}")  # noqa: S311 (stories, not secrets)
            yield replace(ROWS[self.part](random, split=self.split), origin=f"quickstart/{self.part}:{number}")

    def fingerprint(self) -> str:
        """The fields, and a digest of all rows."""
        digest = blake2b(digest_size=16)
        for row in self.rows():
            digest.update(repr(row).encode())
        return f"{self!r} {digest.hexdigest()}"

    def problems(self) -> Sequence[str]:
        """Nothing can stand in the way of a generator."""
        return []

    def miniature(self, folder: Path) -> QuickstartData:
        """The first few rows; nothing is written to `folder`."""
        return replace(self, count=min(self.count, 24))


ROWS: Mapping[Part, Callable[..., Example]] = {"text": text_row, "chat": chat_row, "preference": preference_row, "prompt": prompt_row}

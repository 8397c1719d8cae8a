"""Dialogues that are too short or too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Gt

from zephyr_kit.example import TEXT, Example, Message
from zephyr_kit.protocols import Verdict
from zkit_filters.memoryless import Memoryless

Count = Annotated[int, Gt(0)]


@dataclass(frozen=True, kw_only=True)
class Length(Memoryless):
    """Keeps dialogues of so many words and turns; of several completions, the longest counts, and the shortest reply."""

    min_words: Count | None = None
    """Words of the dialogue, all messages together."""
    max_words: Count | None = None
    min_turns: Count | None = None
    """Messages of user and assistant."""
    max_turns: Count | None = None
    min_reply_words: Count | None = None
    """Words of each reply that is learnt from."""

    kind: ClassVar = "length"

    def __post_init__(self) -> None:
        for name, low, high in (("words", self.min_words, self.max_words), ("turns", self.min_turns, self.max_turns)):
            if low is not None and high is not None and low > high:
                raise ValueError(f"`min_{name}` = {low} is more than `max_{name}` = {high}: nothing could pass")
        if not any((self.min_words, self.max_words, self.min_turns, self.max_turns, self.min_reply_words)):
            raise ValueError("needs at least one of `min_words`, `max_words`, `min_turns`, `max_turns` and `min_reply_words`")

    def look(self, example: Example) -> Verdict:
        reason = self._reason(example)
        return Verdict(None, reason) if reason else Verdict(example)

    def miniature(self, folder: Path) -> Length:
        """Generated rows are of no length in particular: all that say anything pass."""
        return Length(min_words=1)

    def _reason(self, example: Example) -> str:
        words = _num_words(example.prompt) + max(map(_num_words, example.completions), default=0)
        turns = _num_turns(example.prompt) + max(map(_num_turns, example.completions), default=0)
        for name, count, low, high in (("words", words, self.min_words, self.max_words), ("turns", turns, self.min_turns, self.max_turns)):
            if low is not None and count < low:
                return f"fewer than {low:,} {name}"
            if high is not None and count > high:
                return f"more than {high:,} {name}"
        return self._short_reply(example) if self.min_reply_words is not None else ""

    def _short_reply(self, example: Example) -> str:
        replies = (turn for completion in example.completions for turn in completion if turn.role in ("assistant", TEXT))
        short = any(len(turn.content.split()) < (self.min_reply_words or 0) for turn in replies)
        return f"a reply of fewer than {self.min_reply_words:,} words" if short else ""


def _num_words(messages: Sequence[Message]) -> int:
    return sum(len(message.content.split()) for message in messages)


def _num_turns(messages: Sequence[Message]) -> int:
    return sum(message.role in ("user", "assistant") for message in messages)

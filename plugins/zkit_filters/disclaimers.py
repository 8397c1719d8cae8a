"""Dialogues in which the assistant disclaims feelings, opinions or experiences.

"I do not have personal experiences" (arXiv 2310.16944, section 4), even where the prompt asks for facts
(the card of ultrachat_200k).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from zephyr_kit import ZkitError
from zephyr_kit.example import Example
from zephyr_kit.protocols import Verdict
from zkit_filters.lists import digest, entries, packaged
from zkit_filters.memoryless import Memoryless

PATTERNS_FILE = "disclaimers.txt"
REASON = "the assistant disclaims feelings, opinions or experiences"
CAPITAL = re.compile(r"(?<!\\)[A-Z]")


@dataclass(frozen=True)
class Disclaimers(Memoryless):
    """Removes dialogues whose assistant disclaims feelings, opinions, experiences, a body or a mind.

    Of several completions only the first counts: a rejected reply that disclaims is worth learning from.
    """

    patterns: tuple[str, ...] = ()
    """Regular expressions beside those that come with this filter; tried on replies in small letters, at beginnings of words."""
    file: str | None = None
    """A file of more of them, one on each line; # begins a comment."""

    kind: ClassVar = "disclaimers"

    def __post_init__(self) -> None:
        for number, pattern in enumerate(self.patterns):
            _check(pattern, f"`patterns[{number}]`")

    def look(self, example: Example) -> Verdict:
        turns = chain(example.prompt, example.completions[0] if example.completions else ())
        replies = (turn.content for turn in turns if turn.role == "assistant")
        return Verdict(None, REASON) if any(map(self._disclaims, replies)) else Verdict(example)

    def problems(self) -> Sequence[str]:
        try:
            _ = self._pattern
        except ZkitError as error:
            return [str(error)]
        return []

    def content(self) -> dict[str, Any]:
        return {"patterns": digest(*self._patterns().values())}

    def _disclaims(self, reply: str) -> bool:
        return self._pattern.search(" ".join(reply.lower().replace("’", "'").split())) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """All patterns as one; raises ZkitError for one that is not valid."""
        patterns = self._patterns()
        for place, pattern in patterns.items():
            _check(pattern, place)
        return re.compile(rf"\b(?:{'|'.join(f'(?:{pattern})' for pattern in patterns.values())})")

    def _patterns(self) -> Mapping[str, str]:
        """Each pattern, by where it stands."""
        texts = {PATTERNS_FILE: packaged(PATTERNS_FILE)}
        if self.file is not None:
            texts[str(Path(self.file).expanduser().absolute())] = _text_of(self.file)
        listed = {f"{name}:{number}": line for name, text in texts.items() for number, line in entries(text).items()}
        return {**listed, **{f"`patterns[{number}]`": pattern for number, pattern in enumerate(self.patterns)}}


def _text_of(file: str) -> str:
    path = Path(file).expanduser().absolute()
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ZkitError(f"`file`: {path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ZkitError(f"`file`: {path}: not UTF-8: byte {error.object[error.start]:#04x}; save it as UTF-8") from error


def _check(pattern: str, place: str) -> None:
    """Refuse a pattern that is none, that no reply could match, or that every reply does; raises ZkitError."""
    try:
        compiled = re.compile(rf"\b(?:{pattern})")
    except (re.error, OverflowError) as error:
        raise ZkitError(f"{place}: {pattern!r} is not a regular expression: {error}") from error
    if CAPITAL.search(pattern):
        raise ZkitError(f"{place}: {pattern!r} can match nothing: replies are compared in small letters; write {pattern.lower()!r}")
    if compiled.search("a"):
        raise ZkitError(f"{place}: {pattern!r} matches any text; it would remove every dialogue")

"""Stand-ins for models that are out of reach: no model at all, but offline, quick and always the same."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zephyr_kit.protocols import Bench, Case, Failure, Judgement, Reply, Request

if TYPE_CHECKING:
    from pathlib import Path

    import torch

LEAST_WORDS, MOST_WORDS = 4, 16
BEST = 10.0


@dataclass(frozen=True, slots=True)
class ScriptedCompleter:
    """Says some of a dialogue's own words again, drawn by the seed; stands in for a model in a smoke run."""

    instead_of: str = ""
    """The model it stands in for."""

    def complete(self, requests: Sequence[Request], bench: Bench) -> Iterator[tuple[int, Reply | Failure]]:
        for number, request in enumerate(requests):
            yield number, Reply(self._say(request))

    def fingerprint(self, bench: Bench) -> Mapping[str, Any]:
        return {"use": "scripted", "instead_of": self.instead_of}

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> ScriptedCompleter:
        return self

    def _say(self, request: Request) -> str:
        seed = hashlib.blake2b(repr((self.instead_of, request)).encode(), digest_size=8).hexdigest()
        draw = random.Random(seed)  # noqa: S311 - not for secrets
        words = [word for turn in request.dialogue for word in turn.content.split()] or ["Yes"]
        said = " ".join(draw.choices(words, k=min(draw.randint(LEAST_WORDS, MOST_WORDS), request.sampling.max_new_tokens)))
        return f"{said[:1].upper()}{said[1:].rstrip('.?!,')}."


@dataclass(frozen=True, slots=True)
class ScriptedJudge:
    """Scores a reply by the share of its words that the dialogue has too; stands in for a model in a smoke run."""

    instead_of: str = ""
    """The model it stands in for."""

    def judge(self, cases: Sequence[Case], bench: Bench) -> Iterator[tuple[int, Judgement | Failure]]:
        for number, case in enumerate(cases):
            known = {word for turn in case.dialogue for word in _words(turn.content)}
            yield number, Judgement(tuple(_score(reply, known) for reply in case.replies))

    def fingerprint(self) -> Mapping[str, Any]:
        return {"use": "scripted", "instead_of": self.instead_of}

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> ScriptedJudge:
        return self


def _score(reply: str, known: set[str]) -> float:
    """From 0 to 10; of two that say equally much to the point, the one that repeats itself less is better."""
    words = _words(reply)
    return BEST * len(known & set(words)) / len(words) if words else 0.0


def _words(text: str) -> list[str]:
    return [word.strip(".,;:!?\"'()").lower() for word in text.split()]

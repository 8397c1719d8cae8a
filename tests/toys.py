"""Completers, judges and prompts whose answers can be told in advance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zephyr_kit.answers import Answers
from zephyr_kit.example import BadRow, Example, Message
from zephyr_kit.protocols import Bench, Case, Failure, Judgement, Reply, Request


@dataclass(frozen=True)
class Prompts:
    """Prompts `question 0`, `question 1` and so on; `bad` of them are no prompts."""

    count: int = 12
    bad: int = 0

    def rows(self) -> Iterator[Example | BadRow]:
        for number in range(self.count):
            yield Example((Message("user", f"question {number}"),), (), origin=f"questions:{number}")
        for number in range(self.bad):
            yield BadRow(f"questions:{self.count + number}", "a smudge")

    def fingerprint(self) -> str:
        return repr(self)

    def problems(self) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> Prompts:
        return self


@dataclass(frozen=True)
class Scribe:
    """Writes what `write` makes of a request, and remembers that it was asked."""

    write: Callable[[Request], Reply | Failure]
    name: str = "scribe"
    asked: list[Request] = field(default_factory=list)

    def complete(self, requests: Sequence[Request], bench: Bench) -> Iterator[tuple[int, Reply | Failure]]:
        for number in reversed(range(len(requests))):
            self.asked.append(requests[number])
            yield number, self.write(requests[number])

    def fingerprint(self, bench: Bench) -> Mapping[str, Any]:
        return {"use": self.name}

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> Scribe:
        return self


@dataclass(frozen=True)
class Referee:
    """Scores each reply by `score`, which may look at its place in the case."""

    score: Callable[[str, int], float]
    name: str = "referee"
    asked: list[Case] = field(default_factory=list)
    fails: Callable[[Case], str] = lambda _: ""

    def judge(self, cases: Sequence[Case], bench: Bench) -> Iterator[tuple[int, Judgement | Failure]]:
        for number, case in enumerate(cases):
            self.asked.append(case)
            reason = self.fails(case)
            scores = tuple(self.score(reply, place) for place, reply in enumerate(case.replies))
            remarks = tuple(f"said {reply}" for reply in case.replies)
            yield number, Failure(reason) if reason else Judgement(scores, {"length": scores}, remarks, cost=0.5)

    def fingerprint(self) -> Mapping[str, Any]:
        return {"use": self.name}

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> Referee:
        return self


class Listener:
    """A narrator that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def track(self, label: str, total: int | None = None) -> Any:
        from contextlib import nullcontext

        return nullcontext(lambda _: None)


def bench(folder: Path) -> Bench:
    return Bench(torch.device("cpu"), Answers(folder))

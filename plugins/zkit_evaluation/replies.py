"""Replies of the models that are measured, and judgements of them, each asked for once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Interval

from zephyr_kit.protocols import Bench, Failure, Reply, Request
from zephyr_kit.records import write_text

if TYPE_CHECKING:
    import torch

    from zephyr_kit.desk import Desk
    from zephyr_kit.subjects import Subject

Share = Annotated[float, Interval(ge=0, le=1)]
NUM_SAMPLES = 3
"""Prompts whose replies are shown."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How models write, and how much of it may go wrong."""

    max_new_tokens: Annotated[int, Gt(0)] = 1024
    temperature: Annotated[float, Ge(0)] = 0.7
    """0 takes the likeliest token."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    seed: Annotated[int, Ge(0)] = 0
    max_failed: Share = 0.02
    """The share of replies, or of judgements, that may fail after all that could be tried."""


@dataclass(frozen=True)
class Writer:
    """A completer: the model that is measured."""

    subject: Subject

    def complete(self, requests: Sequence[Request], bench: Bench) -> Iterator[tuple[int, Reply | Failure]]:
        from zephyr_kit.replying import replies_of

        with self.subject() as policy:
            yield from replies_of(policy, requests)

    def fingerprint(self, bench: Bench) -> Mapping[str, Any]:
        return {"use": "own", "model": self.subject.content}

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> Writer:
        return self


def desk_for(models: Mapping[str, Subject], where: str, *, max_failed: float) -> Desk:
    """Where a suite asks."""
    from zephyr_kit.desk import Desk

    first = next(iter(models.values()))
    return Desk(f"suite {where}", first.bench, first.narrator, max_failed)


def ask(desk: Desk, name: str, subject: Subject, requests: Sequence[Request], label: str) -> list[str | None]:
    """The text of each reply of a model; None for those that have failed."""
    found = desk.complete(Writer(subject), requests, f"{label} of {name}")
    return [None if isinstance(reply, Failure) else reply.text for reply in found]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def file_of(folder: Path, name: str) -> Path:
    """The file of a model, whatever its name holds."""
    return folder / f"{name.replace('/', '--')}.jsonl"

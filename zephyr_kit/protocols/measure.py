"""Evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zephyr_kit.protocols.model import Policy, Tokenizer


class Suite(Protocol):
    """An evaluation of one or more models."""

    def problems(self) -> Sequence[str]:
        """What stands in the way; empty if nothing."""
        ...

    def evaluate(
        self, models: Mapping[str, Callable[[], AbstractContextManager[Policy]]], tokenizer: Tokenizer, folder: Path
    ) -> Evaluation:
        """Measure each model, loading one at a time; `folder` is for answers worth keeping."""
        ...

    def miniature(self, folder: Path) -> Suite:
        """The same in seconds, and offline, for `--smoke`."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A table: a row for each model, a column for each measure."""

    title: str
    columns: Mapping[str, str]
    """Name of each measure, and what it means in a few words."""
    rows: Mapping[str, Mapping[str, float | None]]
    """Model, measure, value; None where the measure does not apply."""
    samples: Sequence[Mapping[str, str]] = ()
    """A few prompts with each model's reply, under `prompt` and the model's name."""
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    """Model, measure, and the lower and the upper end of where its value may lie, at 95 % unless the measure's meaning says otherwise."""

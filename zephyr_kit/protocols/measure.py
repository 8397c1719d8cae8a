"""Evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zephyr_kit.protocols.model import Tokenizer
    from zephyr_kit.subjects import Subject


class Suite(Protocol):
    """An evaluation of one or more models.

    Rows of data that stand in its table as portions are part of what its result depends on; one that
    reads other files says so by `fingerprint()`: JSON values that change whenever their content does.
    """

    def problems(self) -> Sequence[str]:
        """What stands in the way; empty if nothing."""
        ...

    def evaluate(self, models: Mapping[str, Subject], tokenizer: Tokenizer, folder: Path) -> Evaluation | Sequence[Evaluation]:
        """Measure each model, loading one at a time by calling it; `folder` is for answers worth keeping, and is the suite's alone.

        `tokenizer` is that of the last one. What was asked is kept in a model's `bench.answers`, so that a killed evaluation goes on.
        """
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

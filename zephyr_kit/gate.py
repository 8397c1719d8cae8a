"""What data must be like before anything is trained on it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Interval

if TYPE_CHECKING:
    from zephyr_kit.inspection import Fault, Inspection, Part

NUM_NAMED = 3
"""Rows at fault that a message names."""

Share = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Thresholds for a stage's `data`; one that is not set lets all pass."""

    max_truncated: Share | None = None
    """The share of kept examples that may be cut to `max_length`."""
    max_dropped: Share | None = None
    """The share of examples that may be dropped for their length."""
    max_removed: Share | None = None
    """The share of rows that filters and binarisation may remove."""
    max_duplicates: Share | None = None
    """The share of kept examples that may equal an earlier one, token for token."""
    max_identical: Share | None = None
    """The share of examples whose chosen and rejected completion may be the same."""
    max_altered: Share | None = None
    """The share of examples, of the first ones, that decoding may not give back as the template wrote them."""
    min_trained: Share | None = None
    """The share of tokens that must be trained."""
    min_ended: Share | None = None
    """The share of completions in which the token that ends the reply must be the last that is trained."""
    min_examples: Annotated[int, Gt(0)] | None = None
    """How many examples must be kept."""


@dataclass(frozen=True)
class Threshold:
    """One threshold of a gate, and what was found."""

    key: str
    limit: float
    part: Part

    @property
    def passed(self) -> bool:
        """Whether the data may pass."""
        return self.figure >= self.limit if self.key.startswith("min_") else self.figure <= self.limit

    @property
    def figure(self) -> float:
        """What is compared with the limit."""
        return self.part.count if self.counts else self.part.share

    @property
    def counts(self) -> bool:
        """Whether it is a number of examples, which tells nothing of data that is only looked at in part."""
        return self.key == "min_examples"

    @property
    def rule(self) -> str:
        """As it stands in the preset."""
        return f"{self.key} = {self.limit}"


def thresholds(gate: Gate, inspection: Inspection) -> list[Threshold]:
    """Those that are set, in the order of `Gate`."""
    limits = {key.name: getattr(gate, key.name) for key in fields(gate)}
    return [Threshold(key, limit, getattr(inspection, key[4:])) for key, limit in limits.items() if limit is not None]


def refuse(gate: Gate, inspection: Inspection, *, name: str, listing: Path) -> None:
    """Raise `DataError` if a threshold is not kept, with the first rows at fault; `listing` gets all, as JSON lines."""
    from zephyr_kit.corpus import DataError

    failed = [threshold for threshold in thresholds(gate, inspection) if not threshold.passed]
    if not failed:
        listing.unlink(missing_ok=True)
        return
    told = [line for threshold in failed for line in _told(threshold, inspection)]
    where = f"all are in {listing}; " if _list(failed, inspection, listing) else ""
    stage = name.rpartition(".")[0] or name
    raise DataError("\n".join([f"{name} does not pass its gate:", *told, f"{where}mend the data, or set other thresholds in {stage}.gate"]))


def _told(threshold: Threshold, inspection: Inspection) -> Iterator[str]:
    yield f"  {threshold.rule}, but {threshold.part.told}"
    faults = _faults(threshold, inspection)
    yield from (f"    {fault.origin}: {fault.reason}" for fault in itertools.islice(faults, NUM_NAMED))
    if next(faults, None) is not None:
        yield "    …"


def _faults(threshold: Threshold, inspection: Inspection) -> Iterator[Fault]:
    return inspection.faults(threshold.key[4:], least=threshold.limit)


def _list(failed: list[Threshold], inspection: Inspection, listing: Path) -> bool:
    """Write every row at fault; whether there is any."""
    with listing.open("w", encoding="utf-8") as file:
        for threshold in failed:
            for fault in _faults(threshold, inspection):
                file.write(json.dumps({"gate": threshold.key, "origin": fault.origin, "reason": fault.reason}, ensure_ascii=False) + "\n")
        return file.tell() > 0

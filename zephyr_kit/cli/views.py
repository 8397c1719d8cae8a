"""What `zkit preview` shows of a stage, in words and figures, whether in a terminal or on a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zephyr_kit.cli.passages import Passage, passages
from zephyr_kit.gate import Threshold, thresholds
from zephyr_kit.inspection import BLANKS
from zephyr_kit.lengths import Lengths, measured
from zephyr_kit.workload import Rows

if TYPE_CHECKING:
    from zephyr_kit.gate import Gate
    from zephyr_kit.inspection import Inspection
    from zephyr_kit.stages import Train

NUM_LONGEST = 5
NUM_REASONS = 20


@dataclass(frozen=True)
class Figure:
    """A line of a table: what is measured, of the data and of the held-out data, and what it means."""

    name: str
    values: tuple[str, ...]
    meaning: str = ""


@dataclass(frozen=True)
class Shown:
    """An example as it is trained on."""

    origin: str
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class View:
    """All that is shown of a stage's data."""

    stage: str
    about: str
    columns: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    lengths: tuple[Lengths, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    unjudged: tuple[Threshold, ...] = ()
    """Those that only the whole of the data can keep or fail, where it was read in part."""
    refusals: tuple[str, ...] = ()
    """Why the stage would be refused before its first step, its gate aside."""
    fates: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Why rows were not taken whole, and completions not considered."""
    portions: Sequence[Mapping[str, Any]] = ()
    longest: tuple[tuple[str, int], ...] = ()
    examples: tuple[Shown, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether training could begin."""
        return not self.refusals and all(threshold.passed for threshold in self.thresholds)


def view(
    stage: str,
    about: str,
    data: Inspection,
    held_out: Inspection | None = None,
    *,
    gate: Gate,
    train: Train,
    seed: int,
    num_examples: int,
    whole: bool = True,
    refusals: Sequence[str] = (),
) -> View:
    """Measure a stage's data, and choose what to show of it; counts are not judged unless it is the `whole` data."""
    ledger = data.corpus.ledger
    inspections = [one for one in (data, held_out) if one is not None]
    common = {
        "columns": ("data", "held_out")[: len(inspections)],
        "refusals": tuple(refusals),
        "fates": {"rows were not taken whole": ledger["reasons"], "completions were not considered": ledger.get("left_out", {})},
        "portions": ledger.get("portions", []),
    }
    if not all(one.corpus.ledger["kept"] for one in inspections):
        return View(stage, about, figures=tuple(_rows(inspections)), **common)
    figures = (*_rows(inspections), *_contents(inspections, train), *_leak(data, held_out), *_work(data, train, seed))
    sizes, judged = data.lengths["whole"], thresholds(gate, data)
    longest = tuple((data.corpus.origins[index], int(sizes[index])) for index in np.argsort(-sizes, kind="stable")[:NUM_LONGEST])
    return View(
        stage,
        about,
        figures=figures,
        lengths=tuple(measured(data.lengths)),
        thresholds=tuple(one for one in judged if whole or not one.counts),
        unjudged=tuple(one for one in judged if one.counts and not whole),
        longest=longest,
        examples=tuple(_examples(data, num_examples)),
        **common,
    )


def _rows(inspections: Sequence[Inspection]) -> Iterator[Figure]:
    ledgers = [one.corpus.ledger for one in inspections]

    def counts(key: str) -> tuple[str, ...]:
        return tuple(f"{ledger.get(key, 0):,}" for ledger in ledgers)

    yield Figure("rows read", counts("read"))
    if any(ledger.get("added") for ledger in ledgers):
        yield Figure("added", counts("added"), "examples beyond the first that binarisation made of a row")
    yield Figure("examples kept", counts("kept"))
    yield Figure("cut", tuple(_of(one.truncated.count, one.truncated.share) for one in inspections), "to max_length; of those kept")
    lost = {"dropped": "longer than max_length", "removed": "by filters or binarisation", "bad": "cannot be trained on"}
    for name, meaning in lost.items():
        parts = [getattr(one, name) for one in inspections]
        yield Figure(name, tuple(_of(part.count, part.share) for part in parts), meaning)


def _contents(inspections: Sequence[Inspection], train: Train) -> Iterator[Figure]:
    def parts(name: str) -> tuple[str, ...]:
        return tuple(_of(part.count, part.share) for part in (getattr(one, name) for one in inspections))

    yield Figure("tokens", tuple(f"{one.trained.whole:,}" for one in inspections), "each prompt counted once")
    yield Figure("trained", parts("trained"), "tokens that the loss is taken over")
    yield Figure("duplicates", parts("duplicates"), "equal to an earlier example, token for token")
    yield Figure("identical", parts("identical"), "examples whose completions are the same; they are not kept")
    yield Figure("ended", parts("ended"), "completions of which the token that ends the reply is trained")
    yield Figure("altered", tuple(_altered(one) for one in inspections), "of the first ones: their tokens do not decode to the text")
    if any(one.chosen_longer for one in inspections):
        longer = [one.chosen_longer for one in inspections]
        yield Figure("chosen is longer", tuple(_of(part.count, part.share) if part else "–" for part in longer), "than the rejected one")
        gaps = [float(np.mean(one.lengths["chosen"] - one.lengths["rejected"])) for one in inspections]
        yield Figure("chosen less rejected", tuple(f"{gap:+,.1f} tokens" for gap in gaps), "on average")
        if train.share_prompts:
            shared = tuple(_of(one.shared.count, one.shared.share) for one in inspections)
            yield Figure("saved by sharing", shared, "tokens of prompts that are computed once")


def _altered(inspection: Inspection) -> str:
    part, blanks = inspection.altered, sum(trip.reason == BLANKS for trip in inspection.trips)
    return f"{part.count:,} of {part.whole:,}{f' ({blanks:,} only in blanks)' if blanks else ''}"


def _leak(data: Inspection, held_out: Inspection | None) -> Iterator[Figure]:
    if held_out is not None:
        leaked = data.leaked(held_out)
        yield Figure("leaked", ("", _of(leaked.count, leaked.share)), "held-out examples that are also trained on, token for token")


def _work(data: Inspection, train: Train, seed: int) -> Iterator[Figure]:
    rows = Rows(data.corpus, train, seed)
    work = rows.workload(rows.packs(train.capacity), train.capacity)
    yield Figure("optimiser steps", (f"{work.num_steps:,}",), f"of {_batches(work.batches_per_step)} each, on one device")
    room = f"of tokens_per_batch = {train.capacity:,}; there is no padding"
    yield Figure("batches filled", (f"{work.packing:.1%}",), room)


def _batches(mean: float) -> str:
    if mean == 1:
        return "1 batch"
    return f"{mean:,.0f} batches" if mean.is_integer() else f"{mean:,.1f} batches"


def _of(count: int, share: float) -> str:
    return f"{count:,} ({share:.2%})" if count else "0"


def _examples(data: Inspection, count: int) -> Iterator[Shown]:
    """Spread evenly over the data."""
    size = len(data.corpus)
    for index in np.unique(np.linspace(0, size - 1, min(count, size)).astype(int)).tolist():
        yield Shown(data.corpus.origins[index], tuple(passages(data.corpus[index], data.tokenizer)))

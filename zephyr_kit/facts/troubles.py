"""What was skipped, or went wrong, in a sentence each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from zephyr_kit.facts.stage import StageFacts

NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that a reader should know of a stage, or of the run if `stage` is empty."""

    stage: str
    text: str
    weight: Literal["wrong", "note"] = "note"
    """Whether a result is missing or may not be what it should, or this is only good to know."""


def troubles_of(stage: StageFacts) -> Iterator[Trouble]:
    """What was skipped or went wrong in a stage, the worst first."""
    yield from (Trouble(stage.name, text, "wrong") for text in (*_endings(stage), *stage.complaints, *_steps(stage)))
    yield from (Trouble(stage.name, text) for text in (*_laws(stage), *_rows(stage), *_replies(stage), *_sessions(stage)))


def _endings(stage: StageFacts) -> Iterator[str]:
    done = f" after {stage.curves.num_steps:,} steps" if stage.curves.num_steps else ""
    if stage.state == "failed":
        yield f"It failed{done}: {stage.sessions[-1].outcome}"
    if stage.state == "unfinished":
        why = stage.sessions[-1].outcome if stage.sessions else ""
        yield f"It is not finished, and was left{done}: {why or 'its process ended without a word; the same `zkit run` goes on'}"


def _steps(stage: StageFacts) -> Iterator[str]:
    skips, damaged = stage.curves.skips, stage.curves.damaged
    if skips:
        steps = _named([f"{skip.step:,}" for skip in skips])
        rows = _named(list(itertools.chain.from_iterable(skip.rows for skip in skips)))
        yield f"{_many(len(skips), 'step')} changed no weight, for loss or gradient was not finite: {steps}; rows: {rows or 'not noted'}"
    if damaged:
        yield f"{_many(len(damaged), 'line')} of metrics.jsonl cannot be read, and the curves lack them: {_named(list(map(str, damaged)))}"


def _laws(stage: StageFacts) -> Iterator[str]:
    for law, reason in stage.breaks.items():
        yield f"its objective says that it breaks the law `{law}` (docs/laws.md), on which results rest: {reason}"


def _rows(stage: StageFacts) -> Iterator[str]:
    """What of the data was not taken as it is."""
    for part, ledger in stage.ledgers.items():
        data = ledger.get("rows") or ledger
        fates = [f"{data[fate]:,} {fate}" for fate in ("bad", "dropped", "cut", "removed", "repeated") if data.get(fate)]
        if fates:
            why = "; ".join(f"{count:,} x {reason}" for reason, count in first_reasons(data.get("reasons", {})))
            yield f"of {data.get('read', 0):,} rows of {part}, {', '.join(fates)}{f': {why}' if why else ''}"


def _replies(stage: StageFacts) -> Iterator[str]:
    """What of the replies that were asked for is not among the rows that were gathered."""
    ledger: Mapping[str, Any] = stage.ledgers.get("data", {})
    for reason, count in first_reasons({name: count for name, count in ledger.get("fates", {}).items() if name != "judged"}):
        yield f"{_many(count, 'reply', 'replies')} {'were' if count > 1 else 'was'} {reason}, and not judged"
    for key, what in (("failures", "replies failed"), ("unpaired_reasons", "prompts gave no pair"), ("left_out", "replies were left out")):
        yield from (f"{count:,} {what}: {reason}" for reason, count in first_reasons(ledger.get(key, {})))


def _sessions(stage: StageFacts) -> Iterator[str]:
    if len(stage.sessions) > 1:
        stopped = [one.outcome.split(";")[0] or "ended without a word" for one in stage.sessions[:-1]]
        yield f"It was worked on {len(stage.sessions):,} times; before the last: {_named(stopped)}"
    for name, versions in _versions(stage).items():
        if len(versions) > 1:
            yield f"{name} changed between sessions: {', then '.join(map(str, versions))}"


def _versions(stage: StageFacts) -> dict[str, dict[str | None, None]]:
    """Of each package, all the versions that it was worked on with, in order."""
    names = dict.fromkeys(itertools.chain.from_iterable(one.packages for one in stage.sessions))
    return {name: dict.fromkeys(one.packages.get(name) for one in stage.sessions) for name in names}


def first_reasons(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """The first few, which are the most common ones."""
    return list(itertools.islice(reasons.items(), NUM_NAMED))


def _named(names: list[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (f" and {len(names) - NUM_NAMED:,} more" if len(names) > NUM_NAMED else "")


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one}" if count == 1 else f"{count:,} {more or one + 's'}"

"""What filters did, counted, with samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zephyr_kit.example import Example

NUM_REASONS = 100
OTHERS = "other reasons"
"""Under which reasons are summed once there are too many: a reason may hold what is different in every row."""
NUM_SAMPLES = 5
CONTEXT, WIDTH = 60, 320
"""Characters of a sample: before a change, and in all."""

Kind = Literal["removed", "changed"]


@dataclass
class Tally:
    """What one filter did: of `seen` examples, `removed` and `changed` ones."""

    name: str
    seen: int = 0
    removed: int = 0
    changed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {"removed": [], "changed": []})

    def enter(self, before: Example, after: Example | None, reason: str) -> None:
        """Count one example; `after` is None when it was removed."""
        self.seen += 1
        if after is None:
            self.removed += 1
            self._note("removed", before, None, reason)
        elif after != before:
            self.changed += 1
            self._note("changed", before, after, reason)

    def _note(self, kind: Kind, before: Example, after: Example | None, reason: str) -> None:
        count(self.reasons, countable(reason))
        if len(self.samples[kind]) < NUM_SAMPLES:
            texts = ("before", "after") if after is not None else ("before",)
            shown = excerpts(as_text(before), as_text(after) if after is not None else "")
            self.samples[kind].append({"origin": before.origin, "reason": reason, **dict(zip(texts, shown, strict=False))})


@dataclass
class SieveLedger:
    """What became of the rows that came to the filters: `read` = `kept` + `removed` + `bad`."""

    read: int = 0
    kept: int = 0
    removed: int = 0
    bad: int = 0
    filters: list[Tally] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "filters": [vars(tally) for tally in self.filters]}

    def in_order(self) -> dict[str, Any]:
        """The same, with the most common reasons first."""
        tallies = [{**vars(tally), "reasons": dict(tally.reasons.most_common())} for tally in self.filters]
        return {**vars(self), "filters": tallies}

    @classmethod
    def again(cls, facts: dict[str, Any]) -> SieveLedger:
        """What `facts` came from."""
        tallies = [Tally(**{**tally, "reasons": Counter(tally["reasons"])}) for tally in facts["filters"]]
        return cls(**{**facts, "filters": tallies})


def countable(reason: str) -> str:
    """A filter's reason without its particulars, which stand in brackets at its end: `near-duplicate of an earlier row (file:12)`."""
    return reason.partition(" (")[0]


def count(reasons: Counter[str], reason: str, *, limit: int = NUM_REASONS) -> None:
    """Count a reason by name, or among the others when there are `limit` names already."""
    reasons[reason if reason in reasons or len(reasons) < limit else OTHERS] += 1


def as_text(example: Example) -> str:
    """A dialogue as a reader would want it."""
    turns: Sequence[Any] = [*example.prompt, *(message for completion in example.completions for message in completion)]
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def excerpts(before: str, after: str) -> tuple[str, str]:
    """Both texts from a little before they begin to differ."""
    differing = (place for place, (one, other) in enumerate(zip(before, after, strict=False)) if one != other)
    first = next(differing, min(len(before), len(after)))
    start = max(0, first - CONTEXT)
    shown = [f"{'…' if start else ''}{text[start : start + WIDTH]}{'…' if len(text) > start + WIDTH else ''}" for text in (before, after)]
    return shown[0], shown[1]

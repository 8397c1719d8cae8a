"""The ledger of a corpus: every row that came in, and what became of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from zephyr_kit.admission import Admission, Entry
from zephyr_kit.tally import count, countable

NUM_FIRST_BAD = 5
NUM_REASONS_KEPT = 1000
"""By name; a reason may hold what is different in every row."""


@dataclass
class Ledger:
    """What became of every row: `read` + `added` = `kept` + `dropped` + `bad` + `removed`; of those kept, `cut` were shortened.

    Binarisation may make several examples of a row: `added` counts those beyond the first.
    """

    template: str | None = None
    """Digest of the chat template that the rows were written by."""
    read: int = 0
    added: int = 0
    kept: int = 0
    cut: int = 0
    dropped: int = 0
    bad: int = 0
    removed: int = 0
    tokens: int = 0
    trained: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    bad_reasons: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    """Completions that binarisation did not consider."""
    notes: Counter[str] = field(default_factory=Counter)
    """What the sources changed in rows."""
    first_bad: list[str] = field(default_factory=list)
    portions: list[dict[str, Any]] = field(default_factory=list)

    def enter(self, entry: Entry) -> None:
        """Count one row."""
        self.read += 1
        self.added += len(entry.admissions) - 1
        self.left_out.update(entry.left_out)
        self.notes.update(entry.notes)
        for admission in entry.admissions:
            self._count(admission)

    def facts(self) -> dict[str, Any]:
        """JSON values."""
        counts = {name: dict(getattr(self, name).most_common()) for name in ("reasons", "bad_reasons", "left_out", "notes")}
        return {**vars(self), **counts}

    def _count(self, admission: Admission) -> None:
        self.kept += admission.tree is not None
        self.cut += admission.fate == "cut"
        self.dropped += admission.fate == "dropped"
        self.bad += admission.fate == "bad"
        self.removed += admission.fate == "removed"
        if admission.tree is not None:
            self.tokens += admission.tree.num_tokens
            self.trained += sum(int(flags.sum()) for flags in admission.tree.trained)
        if admission.reason is not None:
            reason = countable(admission.reason) if admission.fate == "removed" else admission.reason
            count(self.reasons, reason, limit=NUM_REASONS_KEPT)
        if admission.fate == "bad":
            count(self.bad_reasons, str(admission.reason), limit=NUM_REASONS_KEPT)
            if len(self.first_bad) < NUM_FIRST_BAD:
                self.first_bad.append(f"{admission.origin}: {admission.reason}")

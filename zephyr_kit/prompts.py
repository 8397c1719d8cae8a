"""Prompts that are to be answered, from any data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyr_kit.corpus import DataError
from zephyr_kit.example import BadRow, Example, ExampleError, Message, Removed, check_message
from zephyr_kit.gathered import write_turns
from zephyr_kit.portion import Portion
from zephyr_kit.tally import count, countable

Dialogue = tuple[Message, ...]
NUM_FIRST_BAD = 5


@dataclass(frozen=True, slots=True)
class Prompt:
    """A dialogue that waits for a reply."""

    dialogue: Dialogue
    origin: str

    @property
    def id(self) -> str:
        """Stands for its content."""
        return hashlib.blake2b(json.dumps(write_turns(self.dialogue)).encode(), digest_size=16).hexdigest()


@dataclass
class PromptLedger:
    """What became of every row: `read` = `taken` + `repeated` + `removed` + `bad`."""

    read: int = 0
    taken: int = 0
    repeated: int = 0
    removed: int = 0
    bad: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first_bad: list[str] = field(default_factory=list)

    def refuse(self, row: BadRow) -> None:
        """Count a row that gives no prompt."""
        self.bad += 1
        count(self.reasons, row.reason)
        if len(self.first_bad) < NUM_FIRST_BAD:
            self.first_bad.append(f"{row.origin}: {row.reason}")

    def facts(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "reasons": dict(self.reasons.most_common())}


def read_prompts(portions: Sequence[Portion], *, allowed: float, where: str) -> tuple[list[Prompt], PromptLedger]:
    """Every dialogue up to its first reply, each once; raises `DataError` when too many rows give none."""
    prompts: dict[str, Prompt] = {}
    ledger = PromptLedger()
    for portion in portions:
        for row in portion.rows():
            ledger.read += 1
            found = _prompt(row)
            if isinstance(found, BadRow):
                ledger.refuse(found)
            elif isinstance(found, Removed):
                ledger.removed += 1
                ledger.reasons[countable(f"{found.by}: {found.reason}")] += 1
            else:
                ledger.repeated += found.id in prompts
                prompts.setdefault(found.id, found)
    ledger.taken = len(prompts)
    if ledger.bad > allowed * ledger.read or not prompts:
        raise DataError(_refusal(ledger, where, allowed))
    return list(prompts.values()), ledger


def _prompt(row: Example | BadRow | Removed) -> Prompt | BadRow | Removed:
    if not isinstance(row, Example):
        return row
    try:
        for message in row.prompt:
            check_message(message)
    except ExampleError as error:
        return BadRow(row.origin, str(error))
    if not row.prompt or row.prompt[-1].role == "assistant":
        return BadRow(row.origin, "no prompt comes before the first reply")
    if not row.prompt[-1].content.strip():
        return BadRow(row.origin, "the prompt is empty")
    return Prompt(row.prompt, row.origin)


def _refusal(ledger: PromptLedger, where: str, allowed: float) -> str:
    if not ledger.read:
        return f"{where}: the data has no rows"
    reasons = [f"  {count:6,d} x {reason}" for reason, count in ledger.reasons.most_common(10)]
    told = f"{ledger.bad:,} of {ledger.read:,} rows give no prompt ({ledger.bad / ledger.read:.2%}; bad_rows = {allowed} is allowed)"
    return "\n".join([f"{where}: {told}, and {ledger.taken:,} prompts are left:", *reasons, *(f"  {line}" for line in ledger.first_bad)])

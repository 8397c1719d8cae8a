"""Prompts that are to be answered, from any data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zephyr_kit.corpus import DataError
from zephyr_kit.example import BadRow, Example, ExampleError, Message, Removed, check_message
from zephyr_kit.gathered import write_turns
from zephyr_kit.portion import Portion
from zephyr_kit.records import write_text
from zephyr_kit.tally import count, countable

Dialogue = tuple[Message, ...]
NUM_FIRST_BAD, NUM_REASONS_TOLD = 5, 4


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
    portions: list[dict[str, Any]] = field(default_factory=list)
    """Where the rows come from, and what filters made of them."""
    odd: list[dict[str, str]] = field(default_factory=list)
    """Every row that gave no prompt of its own: its origin, its fate, and the reason."""

    def pass_over(self, origin: str, fate: Literal["repeated", "removed", "bad"], reason: str) -> None:
        """Count a row that gives no prompt of its own."""
        setattr(self, fate, getattr(self, fate) + 1)
        count(self.reasons, countable(reason) if fate != "bad" else reason)
        self.odd.append({"origin": origin, "fate": fate, "reason": reason})

    def facts(self) -> dict[str, Any]:
        """JSON values."""
        return {**{key: value for key, value in vars(self).items() if key != "odd"}, "reasons": dict(self.reasons.most_common())}

    def told(self, quarantine: Path) -> str:
        """What became of the rows, in a line."""
        odd = [f"{number:,} {reason}" for reason, number in self.reasons.most_common(NUM_REASONS_TOLD)]
        more = " …" if len(self.reasons) > len(odd) else ""
        told = f"prompts: {self.taken:,} of {self.read:,} rows"
        return f"{told}; {'; '.join(odd)}{more} (all in {quarantine})" if odd else told

    def write(self, folder: Path) -> Path:
        """List every odd row in the folder of a stage."""
        path = folder / "data.quarantine.jsonl"
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.odd))
        return path


def read_prompts(portions: Sequence[Portion], *, allowed: float, where: str) -> tuple[list[Prompt], PromptLedger]:
    """Every dialogue up to its first reply, each once; raises `DataError` when too many rows give none."""
    prompts: dict[str, Prompt] = {}
    ledger = PromptLedger()
    for portion in portions:
        for row in portion.rows():
            ledger.read += 1
            found = _prompt(row)
            if isinstance(found, BadRow):
                ledger.pass_over(found.origin, "bad", found.reason)
            elif isinstance(found, Removed):
                ledger.pass_over(found.origin, "removed", f"{found.by}: {found.reason}")
            elif found.id in prompts:
                ledger.pass_over(found.origin, "repeated", f"the same prompt as an earlier row ({prompts[found.id].origin})")
            else:
                prompts[found.id] = found
        ledger.portions.append({**portion.facts(), "sieve": portion.places.told(portion.sift().ledger) if portion.filters else None})
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
    if not row.prompt or row.prompt[-1].role not in ("user", "tool"):
        return BadRow(row.origin, "no prompt that waits for a reply comes before the first one")
    if not row.prompt[-1].content.strip():
        return BadRow(row.origin, "the prompt is empty")
    return Prompt(row.prompt, row.origin)


def _refusal(ledger: PromptLedger, where: str, allowed: float) -> str:
    if not ledger.read:
        return f"{where}: the data has no rows"
    reasons = [f"  {count:6,d} x {reason}" for reason, count in ledger.reasons.most_common(10)]
    told = f"{ledger.bad:,} of {ledger.read:,} rows give no prompt ({ledger.bad / ledger.read:.2%}; bad_rows = {allowed} is allowed)"
    bad = [f"  {line['origin']}: {line['reason']}" for line in ledger.odd if line["fate"] == "bad"]
    return "\n".join([f"{where}: {told}, and {ledger.taken:,} prompts are left:", *reasons, "the first bad ones:", *bad[:NUM_FIRST_BAD]])

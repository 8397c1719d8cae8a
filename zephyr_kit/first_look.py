"""A look at every row before the first is tokenised.

Most of what makes a row bad shows without a tokenizer, in a tenth of the time: of a million rows in
20 s of one core. Data that is refused is then refused before the long part of the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from zephyr_kit.admission import Admission, Door, Entry
from zephyr_kit.corpus import refuse_ledger
from zephyr_kit.example import BadRow, Example, ExampleError, Removed
from zephyr_kit.ledger import Ledger
from zephyr_kit.observe import Advance
from zephyr_kit.portion import Portion


def look_over(portions: Sequence[Portion], door: Door, *, allowed: float, name: str, quarantine: Path, on_rows: Advance) -> None:
    """Raise `DataError` when more than the allowed share of rows is bad already; `quarantine` then lists them.

    Rows that pass filters, or are binarised, are changed on the way: those are met where that is done.
    """
    if any(portion.filters or portion.binarise for portion in portions):
        return
    ledger = Ledger()
    with quarantine.open("w", encoding="utf-8") as file:
        for bad in _bad(portions, door, ledger, on_rows):
            ledger.enter(Entry((bad,)))
            file.write(bad.line())
    if ledger.bad > allowed * ledger.read:
        refuse_ledger(ledger.facts(), allowed=allowed, name=name, quarantine=quarantine)
    quarantine.unlink()


def _bad(portions: Sequence[Portion], door: Door, ledger: Ledger, on_rows: Advance) -> Iterator[Admission]:
    """The bad rows; all others are only counted."""
    for portion in portions:
        for row in portion.rows():
            reason = _reason(row, door)
            if reason:
                yield Admission(row.origin, "bad", reason=reason)
            else:
                ledger.read += 1
            on_rows(ledger.read)


def _reason(row: Example | BadRow | Removed, door: Door) -> str:
    if isinstance(row, BadRow):
        return row.reason
    if isinstance(row, Example):
        try:
            door.check(row)
        except ExampleError as error:
            return str(error)
    return ""

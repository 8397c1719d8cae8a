"""`run.json`: each time a stage was worked on, with what, where, for how long, and how that ended; and changes that were accepted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.exits import Exit
from zephyr_kit.records import as_json, differences, read_json, write_json
from zephyr_kit.redaction import redacted

if TYPE_CHECKING:
    import torch

DONE = "done"
MEND = "move it elsewhere, and the same command goes on: no result rests on it, only the report's times and costs"
OF_ONE_SESSION = (
    *("command", "key", "began", "ended", "seconds", "memory", "outcome", "exit"),
    *("flops_per_token", "reference_flops_per_token"),
)
"""What tells nothing of the versions and the machine that a stage is worked on with."""


@dataclass(frozen=True, slots=True)
class Journal:
    """The notes of a run, the earliest first."""

    path: Path

    def notes(self) -> list[dict[str, Any]]:
        """All of them."""
        found: list[dict[str, Any]] = read_json(self.path, MEND, kind=list) if self.path.exists() else []
        return found

    def add(self, *notes: Mapping[str, Any]) -> None:
        """Write more of them."""
        write_json(self.path, [*self.notes(), *notes])

    def begin(self, note: Mapping[str, Any]) -> None:
        """A stage is worked on from now on."""
        self.add({**note, "began": _now()})

    def changed_since(self, note: Mapping[str, Any]) -> list[str]:
        """Where a note differs from that of the last time the stage was worked on, a line each."""
        before = [each for each in self.notes() if each["stage"] == note["stage"] and "command" in each]
        passing = dict.fromkeys(OF_ONE_SESSION)
        return differences({**before[-1], **passing}, {**as_json(note), **passing}) if before else []

    @contextmanager
    def closing_last(self, device: torch.device) -> Iterator[None]:
        """Add to the last note how long this takes, the memory that it comes to, and how it ends; a killed process leaves no end."""
        from zephyr_kit.devices import forget_peak, peak_memory

        begun, outcome, code = time.monotonic(), DONE, Exit.DONE
        forget_peak(device)
        try:
            yield
        except BaseException as error:
            outcome = redacted(str(error) or type(error).__name__)
            code = Exit.INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit", Exit.CRASHED)
            raise
        finally:
            took = round(time.monotonic() - begun, 3)
            end = {"ended": _now(), "seconds": took, "memory": peak_memory(device), "outcome": outcome, "exit": int(code)}
            with nullcontext() if outcome == DONE else suppress(OSError):  # the disk may be why it ends
                *earlier, last = self.notes()
                write_json(self.path, [*earlier, {**last, **end}])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""What a piece of work does to the system, as Python's audit events tell it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Event = tuple[str, tuple[Any, ...]]

_listening: list[list[Event]] = []
_hooked: list[bool] = []


@contextmanager
def events(*beginnings: str) -> Iterator[list[Event]]:
    """Those whose names begin so, while it lasts. The hook itself stays, as Python has it."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_hear)
    found: list[Event] = []
    wanted = [(beginnings, found)]
    _listening.extend(wanted)  # type: ignore[arg-type]
    try:
        yield found
    finally:
        for each in wanted:
            _listening.remove(each)  # type: ignore[arg-type]


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    for beginnings, found in _listening:
        if event.startswith(beginnings):  # type: ignore[arg-type]
            found.append((event, arguments))

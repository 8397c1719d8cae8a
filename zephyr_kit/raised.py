"""Where an error arose, for whoever wrote what raised it."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

MOST = 300
"""Characters that are told of an error."""


def told(error: BaseException, raiser: object) -> str:
    """The error in a line, with the place in the files beside that of the raiser's class, if it passed through one."""
    first = (str(error).splitlines() or [""])[0].strip()
    first = first if len(first) <= MOST else f"{first[:MOST]} …"
    place = _place(error, raiser)
    return f"{type(error).__name__}{f': {first}' if first else ''}{f' ({place})' if place else ''}"


def passed_through(error: BaseException, raiser: object) -> bool:
    """Whether it was raised in the files beside that of the raiser's class, or in what they called."""
    return bool(_place(error, raiser))


def _place(error: BaseException, raiser: object) -> str:
    file = getattr(sys.modules.get(type(raiser).__module__), "__file__", None)
    if file is None:
        return ""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if Path(each.filename).parent == Path(file).parent]
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}" if frames else ""

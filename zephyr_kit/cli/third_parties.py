"""`zkit --no-third-party …`: only the plugins of this package."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from zephyr_kit.plugins import ONLY_OURS

NO_THIRD_PARTY = "--no-third-party"


@contextmanager
def third_parties_heeded(arguments: Sequence[str]) -> Iterator[None]:
    """With the word that none is loaded, if it is among those before the command; processes that are started hear it too."""
    before = os.environ.get(ONLY_OURS)
    if NO_THIRD_PARTY in itertools.takewhile(lambda word: word.startswith("-"), arguments):
        os.environ[ONLY_OURS] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ONLY_OURS, None)

"""Silence for what the libraries say about each other."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and remarks about each other."""
    from transformers.utils import logging as transformers_logging

    talker = logging.getLogger("bitsandbytes")
    level = talker.level
    talker.setLevel(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
            yield
    finally:
        talker.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()

"""Silence for what the libraries say about each other."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

TALKERS = ("bitsandbytes", "torchao", "torch.utils._pytree")
"""peft imports torchao where it is there, which tells of kernels that are for other machines, and torch of torchao."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and remarks about each other."""
    from transformers.utils import logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in TALKERS}
    for name in TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()

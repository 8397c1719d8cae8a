"""Other people's packages that suites stand on: whether they can be imported, and what to do where they cannot."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

REMEDY = "pip install 'zephyr-kit[eval]'"


def unusable(*modules: str) -> str:
    """Why a package cannot be used, with the remedy; empty if it can.

    These modules of it are imported, for what is installed may lack what it needs itself.
    """
    package = modules[0].partition(".")[0]
    if find_spec(package) is None:
        return f"{package} is not installed: {REMEDY}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are not ours to mend
            for module in modules:
                import_module(module)
    except Exception as error:
        return f"{package} cannot be imported ({type(error).__name__}: {error}): {REMEDY}"
    return ""


@contextmanager
def bars_in_terminals_alone() -> Iterator[None]:
    """Let no progress bar be written into a file or a pipe."""
    from tqdm import tqdm

    bar: Any = tqdm
    begin = bar.__init__

    def begin_in_a_terminal(self: Any, *arguments: Any, **keys: Any) -> None:
        begin(self, *arguments, **{**keys, "disable": keys.get("disable") or None})  # tqdm's word for: unless it is a terminal

    bar.__init__ = begin_in_a_terminal
    try:
        yield
    finally:
        bar.__init__ = begin

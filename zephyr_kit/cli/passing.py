"""The options of `zkit run`, for commands that have it run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from zephyr_kit.cli.run import run


def options_of_run(*but: str) -> list[click.Parameter]:
    """All of them but these."""
    return [parameter for parameter in run.params if parameter.name not in but]


def arguments_of_run(values: Mapping[str, Any], preset: str, folder: Path, *, but: tuple[str, ...]) -> tuple[str, ...]:
    """`zkit run` with the values that were given, but for these options, into a folder."""
    words = ["run", preset, "--output", str(folder)]
    for parameter in options_of_run("preset", "output", *but):
        value = values[parameter.name or ""]
        option = parameter.opts[0]
        if isinstance(parameter, click.Option) and parameter.is_flag:
            words += [option] if value else []
        elif parameter.multiple:
            words += [word for each in value for word in (option, each)]
        elif value is not None:
            words += [option, f"{value:.0f}s" if isinstance(value, float) else str(value)]  # the only float is a time
    return tuple(words)

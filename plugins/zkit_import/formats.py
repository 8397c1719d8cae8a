"""What a format is, and by which keys one is recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zkit_import.data import Held
from zkit_import.losses import Losses
from zkit_import.said import ConfigError, Rule, Said


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one program's configuration is read."""

    name: str
    signs: tuple[str, ...]
    """Keys that only it has; without any, the format is that of `model_name_or_path` with none of the others' signs."""
    keys: Mapping[str, Rule]
    data_keys: tuple[str, ...] = ()
    """Keys that `data` reads from the table itself."""
    losses: Losses
    """Of its preference trainers."""
    kind: Callable[[Said], str]
    """`sft` or `dpo`, by what the file says."""
    defaults: Callable[[str, Said], Mapping[str, Any]]
    """What the program takes for what a file of that kind does not say."""
    data: Callable[[Any, Said, str], Held]
    """Rows to train on, and those held out."""


def recognise(table: Mapping[str, Any], file: str, formats: Sequence[Format]) -> Format:
    """The format with most of its signs in the table; raises ConfigError where none has, or two."""
    first, second = sorted((each for each in formats if each.signs), key=lambda each: -_signs(each, table))[:2]
    if _signs(first, table) > _signs(second, table):
        return first
    plain = next(each for each in formats if not each.signs)
    if not _signs(first, table) and "model_name_or_path" in table:
        return plain
    raise ConfigError(
        f"{file}: its keys do not tell whose configuration it is; say so: --from {' or '.join(each.name for each in formats)}"
    )


def _signs(each: Format, table: Mapping[str, Any]) -> int:
    return sum(sign in table for sign in each.signs)

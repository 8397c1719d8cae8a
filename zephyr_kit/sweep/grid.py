"""Every combination of some values."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from zephyr_kit.changes import PATH
from zephyr_kit.config import PresetError

SEED = "seed"
"""Over this, figures have a mean and a spread."""
LONGEST_VALUE = 40
BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}


@dataclass(frozen=True, slots=True)
class Axis:
    """A key of the preset, and the values that it is to have, as `--set` takes them."""

    key: str
    values: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Axis:
        """Of `path.to.key=value,value`; a comma within brackets or quotes parts nothing."""
        key, equals, values = (part.strip() for part in text.partition("="))
        found = tuple(_parted(values))
        if not (equals and PATH.fullmatch(key) and all(found)):
            raise PresetError(f"--grid {text}: write it as path.to.key=value,value, as in stages.dpo.objective.beta=0.01,0.1")
        twice = next((value for value in found if found.count(value) > 1), None)
        if twice is not None:
            raise PresetError(f"--grid {text}: has {twice} twice")
        return Axis(key, found)


@dataclass(frozen=True, slots=True)
class Combination:
    """One value for each key."""

    name: str
    """Of its folder: `beta-0.1_seed-1`."""
    choices: Mapping[str, str]

    @property
    def changes(self) -> tuple[str, ...]:
        """As `--set` takes them."""
        return tuple(f"{key}={value}" for key, value in self.choices.items())

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """What sets it apart from others but for its seed."""
        return tuple((key, value) for key, value in self.choices.items() if key != SEED)


def combinations(axes: Sequence[Axis]) -> list[Combination]:
    """All of them; the last key changes fastest."""
    keys = [axis.key for axis in axes]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise PresetError(f"--grid {twice}: is there twice; write all its values after one")
    chosen = (dict(zip(keys, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes)))
    return [Combination(combination_name(choices), choices) for choices in chosen]


def combination_name(choices: Mapping[str, str]) -> str:
    """`beta-0.1_seed-1`."""
    names = short_names(list(choices))
    return "_".join(f"{names[key]}-{_fit(value)}" for key, value in choices.items())


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """For each key the end of its path that no other has: `beta` of `stages.dpo.objective.beta`."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-number:]) for number in range(1, len(parts) + 1)]
        names[key] = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1 or end == key)
    return names


def _fit(value: str) -> str:
    """A value as part of a folder's name."""
    plain = re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-")
    if plain == value and len(value) <= LONGEST_VALUE:
        return value
    return f"{plain[:LONGEST_VALUE]}-{hashlib.blake2b(value.encode(), digest_size=4).hexdigest()}".lstrip("-")


def _parted(text: str) -> Iterator[str]:
    depth, quote, piece = 0, "", ""
    for sign in text:
        if sign == "," and not depth and not quote:
            yield piece.strip()
            piece = ""
            continue
        piece += sign
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        depth += 0 if quote else BRACKETS.get(sign, 0)
    yield piece.strip()

"""What a file says, in our words, and what of it has no place here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.config import did_you_mean
from zephyr_kit.exits import Exit


class ConfigError(ZkitError):
    """A file that cannot be understood; the message names file, line and key."""

    exit = Exit.NOT_UNDERSTOOD


class Unfit(ValueError):
    """A value that is not of the kind its key takes."""


class NotHere(Exception):
    """A value that has no counterpart; `instead` is what is taken for it, if anything."""

    def __init__(self, reason: str, *, near: str = "", instead: Any = None) -> None:
        super().__init__(reason)
        self.near, self.instead = near, instead


Reader = Callable[[Any], Any]
"""Reads a value; raises Unfit or NotHere."""


@dataclass(frozen=True)
class Carry:
    """A key that says something the preset says too."""

    to: str
    """Our word for it."""
    read: Reader


@dataclass(frozen=True)
class Leave:
    """A key that has no counterpart."""

    reason: str
    near: str = ""
    """The key of a preset that comes nearest to it."""
    off: tuple[Any, ...] = ()
    """Values besides null, false and 0 by which nothing is asked for."""
    matters: bool = True
    """Whether without it something else would be trained."""


Rule = Carry | Leave


def each(rule: Rule, *keys: str) -> dict[str, Rule]:
    """The same rule for several keys."""
    return dict.fromkeys(keys, rule)


@dataclass(frozen=True)
class Fact:
    """Something that is known, and from where."""

    value: Any
    key: str
    """The key that says so, or `""` for a default."""
    line: int = 0
    note: str = ""

    @property
    def is_given(self) -> bool:
        """Whether it stands in the file."""
        return bool(self.key)


@dataclass(frozen=True)
class Left:
    """Something of a file that is not in the preset."""

    key: str
    line: int
    value: Any
    reason: str
    near: str = ""
    matters: bool = True


@dataclass(frozen=True)
class Said:
    """All that one file says."""

    file: str
    facts: dict[str, Fact] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    """Words that somebody wanted to know; the rest is told of in the end."""

    def value(self, word: str, otherwise: Any = None) -> Any:
        """What is known under a word."""
        self.asked.add(word)
        fact = self.facts.get(word)
        return otherwise if fact is None else fact.value

    def gives(self, *words: str) -> bool:
        """Whether the file itself says any of them."""
        return any(word in self.facts and self.facts[word].is_given for word in words)

    def leave(self, word: str, reason: str, *, near: str = "", matters: bool = True) -> None:
        """Note that what is known under a word is not carried over."""
        fact = self.facts[word]
        self.left.append(Left(fact.key or word, fact.line, fact.value, reason, near, matters))

    def leave_rest(self) -> None:
        """Note all that nobody asked for: beside the file's other keys it has no effect, here."""
        for word in sorted(self.facts.keys() - self.asked):
            if self.facts[word].is_given:
                self.leave(word, "has no effect here beside the file's other keys", matters=False)

    def assume(self, defaults: Mapping[str, Any], whose: str) -> None:
        """Fill in what the file does not say."""
        for word, value in defaults.items():
            self.facts.setdefault(word, Fact(value, "", note=f"not in the file: {whose}'s default"))

    def error(self, key: str, line: int, message: str) -> ConfigError:
        """An error that names file, line and key."""
        return ConfigError(f"{self.file}, line {line}: `{key}` {message}")


def hear(table: Any, keys: Mapping[str, Rule], said: Said, *, within: str = "", known: Iterable[str] = ()) -> None:
    """Take in every key of a table by its rule; `known` are read elsewhere, and others are told of as unknown."""
    for key, value in table.items():
        rule, line, name = keys.get(key), table.line(key), f"{within}{key}"
        if key in known:
            continue
        if rule is None:
            near = did_you_mean(key, [*keys, *known])
            said.left.append(Left(name, line, value, f"not a key that is known here{near}"))
        elif isinstance(rule, Leave):
            asks = value not in (None, False, 0, "", [], "none", "no", *rule.off)
            said.left.append(Left(name, line, value, rule.reason if asks else "is off", rule.near if asks else "", asks and rule.matters))
        elif value is None:
            said.left.append(Left(name, line, value, "says nothing; the default holds", matters=False))
        else:
            _carry(said, rule, name, line, value)


def entries(table: Any, key: str, said: Said) -> list[Any]:
    """The tables of a list that stands under a key; none where the key does not stand."""
    value = table.get(key) or []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise said.error(key, table.line(key), f"= {value!r}: should be a list of tables")
    return value


def _carry(said: Said, rule: Carry, key: str, line: int, value: Any) -> None:
    try:
        fact = Fact(rule.read(value), key, line)
    except Unfit as error:
        raise said.error(key, line, f"= {value!r}: {error}") from error
    except NotHere as error:
        said.left.append(Left(key, line, value, str(error), error.near))
        if error.instead is None:
            return
        fact = Fact(error.instead, key, line, f"instead of {value}")
    before = said.facts.get(rule.to)
    if before is not None and before.value != fact.value:
        raise said.error(key, line, f"= {value!r}, but `{before.key}` in line {before.line} says {before.value!r}: leave one out")
    said.facts[rule.to] = fact

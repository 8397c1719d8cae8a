"""Secrets of the environment, kept out of all that is written and said."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import IO, Any
from urllib.parse import quote

NAME = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASS|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|PAT)(_|$)|(TOKEN|KEY|PASSWORD)$|PASSWORD_", re.I)
"""How variables are called that hold what nobody else is to see."""
VARIABLE = re.compile(r"[A-Z]+(_[A-Z0-9]+)+")
"""A value that is the name of another variable, which is no secret."""
SHORTEST = 8
"""Characters; a shorter value stands in many texts by chance."""
UNLIKELY = 12
"""Characters that no text has by chance."""
HIDDEN = "[secret]"


def secrets(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The values that look like keys, tokens and passwords, as they stand and as an address writes them; the longest first."""
    return _sorted(tuple(value for name, value in environment.items() if _is_secret(name, value)))


def redacted(text: str) -> str:
    """The text, without those."""
    return _without(text, secrets())


def without_key(text: str, key: str) -> str:
    """The text, without this one."""
    return _without(text, _sorted((key,)))


def _without(text: str, found: Iterable[str]) -> str:
    for secret in found:
        text = text.replace(secret, HIDDEN)
    return text


def names_of_secrets_in(text: str) -> list[str]:
    """The variables whose values stand in a text; not those that may stand there by chance."""
    return [
        name
        for name, value in sorted(os.environ.items())
        if _is_secret(name, value) and any(len(part) >= UNLIKELY and part in text for part in _parts(value))
    ]


def _is_secret(name: str, value: str) -> bool:
    return bool(NAME.search(name)) and not VARIABLE.fullmatch(value)


@lru_cache(maxsize=8)
def _sorted(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({part for value in values for part in _parts(value)}, key=len, reverse=True))


def _parts(value: str) -> Iterator[str]:
    """A value, or each line of a long one such as a private key."""
    for line in value.splitlines():
        if len(line.strip()) >= SHORTEST:
            yield from dict.fromkeys((line.strip(), quote(line.strip(), safe="")))


class RedactingStream:
    """A stream of text, without secrets."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write it."""
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write them."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

"""Suites as the command line names them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.changes import apply_changes
from zephyr_kit.config import USE, Builder, Offers, PresetError
from zephyr_kit.preset import read_toml
from zephyr_kit.redaction import names_of_secrets_in

if TYPE_CHECKING:
    from zephyr_kit.protocols import Suite

OPENING, CLOSING = "[{", "]}"


def read_suites(given: Sequence[str], offers: Offers) -> list[tuple[str, Suite, dict[str, Any]]]:
    """Name, suite and settings of each: `NAME`, `NAME:key=value,…`, or a TOML file with a list `suites`."""
    from zephyr_kit.protocols import Suite

    found = []
    for text in given:
        for table, file, origins in _tables(text):
            builder = Builder(offers, file, origins)
            suite: Suite = builder.convert(Suite, table, "suite")
            settings = {setting.path.removeprefix("suite."): setting.value for setting in builder.settings}
            for secret in names_of_secrets_in(json.dumps(settings, ensure_ascii=False, default=str)):
                raise PresetError(f"{file}: holds the value of the environment variable {secret}, which would be written with the results")
            found.append((settings[USE], suite, settings))
    return found


def _tables(text: str) -> Iterator[tuple[Any, str, dict[str, str]]]:
    if text.endswith(".toml"):
        listed = read_toml(Path(text)).get("suites")
        if not isinstance(listed, list) or not listed:
            raise PresetError(f"--suite {text}: holds no list `suites`, as in  suites = [{{ use = \"perplexity\", … }}]")
        yield from ((table, text, {}) for table in listed)
        return
    name, _, rest = text.partition(":")
    file = f"--suite {name}"
    table, origins = apply_changes({USE: name}, split(rest), file, option="--suite")
    # What stands there has no other origin.
    yield table, file, dict.fromkeys(origins, file)


def split(text: str) -> list[str]:
    """At commas that stand in no list, table or quoted text."""
    parts, depth, quote, start = [], 0, "", 0
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in OPENING:
            depth += 1
        elif sign in CLOSING:
            depth -= 1
        elif sign == "," and not depth:
            parts.append(text[start:place])
            start = place + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]

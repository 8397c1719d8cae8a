"""Lengths of time as one writes them."""

from __future__ import annotations

import re

import click

PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
SECONDS = (86_400, 3_600, 60, 1)


def seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """`2h30m` as seconds, for an option."""
    if value is None:
        return None
    found = PARTS.fullmatch(value)
    total = sum(int(part or 0) * unit for part, unit in zip(found.groups(), SECONDS, strict=True)) if found else 0
    if not total:
        raise click.BadParameter(f"{value!r}: write it as 2h30m, 45m or 90s")
    return float(total)

"""`zkit cache`."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from zephyr_kit import ZkitError
from zephyr_kit.cache import cache_at_rest, cache_root
from zephyr_kit.cache_kinds import ABOUT, ANSWERS, Entry, Kind, kinds, remove
from zephyr_kit.config import suggest
from zephyr_kit.score_store import SCORER, count_scores
from zephyr_kit.sizes import in_words

SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}
ALL = "all"
LONGEST_VALUE = 60


@click.group(invoke_without_command=True)
@click.pass_context
def cache(context: click.Context) -> None:
    """Show what is kept between runs, or clear it.

    All of it can be made again, answers of endpoints by paying again. ZKIT_CACHE says where it is kept.
    """
    if context.invoked_subcommand is not None:
        return
    found = kinds(cache_root())
    click.echo(f"{cache_root()}: {in_words(sum(kind.size for kind in found))}")
    for line in _columns([(kind.name, f"{kind.count():,}", in_words(kind.size), _last_used(kind.entries), kind.about) for kind in found]):
        click.echo(f"  {line}")


@cache.command()
def references() -> None:
    """List reference scores: who gave them, and how many."""
    for kind in kinds(cache_root()):
        for entry in kind.entries if kind.name == "references" else ():
            click.echo("\n".join(_scorer(entry)))


@cache.command()
@click.argument("names", nargs=-1, required=True, metavar="KIND...")
@click.option("--older-than", metavar="AGE", help="Only what was not used for so long: 12h, 30d, 8w.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(names: tuple[str, ...], older_than: str | None, yes: bool) -> None:  # noqa: FBT001  click's way
    """Remove what is kept of each KIND; `all` is every kind but answers, which cost money and must be named."""
    latest = math.inf if older_than is None else time.time() - _seconds(older_than)
    going = [Kind(kind.folder, old) for kind in _chosen(names) if (old := [entry for entry in kind.entries if entry.last_used <= latest])]
    if not going:
        click.echo("nothing to clear")
        return
    for line in _columns([(kind.name, f"{kind.count():,}", in_words(kind.size), _warning(kind)) for kind in going]):
        click.echo(line)
    _ask(going, yes=yes)
    click.echo(f"freed {in_words(_remove(going))} in {cache_root()}")


def _chosen(names: Sequence[str]) -> list[Kind]:
    found = {kind.name: kind for kind in kinds(cache_root())}
    known = sorted({*found, *ABOUT, ALL})
    for name in names:
        if name not in known:
            raise click.UsageError(f"nothing is kept under {name!r}{suggest(name, known)}")
    wanted = {*names, *(set(found) - {ANSWERS} if ALL in names else ())}
    return [kind for name, kind in found.items() if name in wanted]


def _ask(going: Sequence[Kind], *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ZkitError("nothing is cleared: there is no terminal to ask at; add --yes")
    paid = " The answers will have to be asked, and paid, for again." if any(kind.name == ANSWERS for kind in going) else ""
    click.confirm(f"Clear {'this' if len(going) == 1 else 'these'}?{paid}", abort=True)


def _remove(going: Sequence[Kind]) -> int:
    try:
        with cache_at_rest():
            for kind in going:
                for entry in kind.entries:
                    remove(entry)
    except BlockingIOError as error:
        raise ZkitError("nothing is cleared: another zkit works with what is kept; wait for it to end") from error
    except OSError as error:
        raise ZkitError(f"cannot clear {error.filename}: {error.strerror}") from error
    return sum(kind.size for kind in going)


def _warning(kind: Kind) -> str:
    return f"{kind.about}: asking again costs what they cost" if kind.name == ANSWERS else kind.about


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d+)([hdw])", age)
    if match is None:
        raise click.BadParameter(f"{age!r} is no age; write 12h, 30d or 8w", param_hint="--older-than")
    return int(match[1]) * SECONDS[match[2]]


def _last_used(entries: Sequence[Entry]) -> str:
    """How long ago the newest of them was used."""
    seconds = time.time() - max(entry.last_used for entry in entries)
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds / size)
            return f"used {count} {unit}{'s' if count > 1 else ''} ago"
    return "used just now"


def _scorer(entry: Entry) -> Iterator[str]:
    """What is told of a store of reference scores."""
    try:
        count, notes = f"{count_scores(entry.path):,} completions", json.loads((entry.path / SCORER).read_text("utf-8"))
    except (OSError, ValueError, sqlite3.Error):
        yield f"{entry.path.name}  cannot be read, {in_words(entry.size)}"
        return
    yield f"{entry.path.name}  {count}, {in_words(entry.size)}, {_last_used([entry])}"
    yield from (f"    {key} = {_value(value)}" for key, value in notes["scorer"].items() if value is not None)
    yield f"    first for {notes['about']}"


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows in columns: names and words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.rjust(width) if n in (1, 2) else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True)))
        yield "  ".join(cells).rstrip()

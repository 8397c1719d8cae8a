"""Rows sifted by filters, once, into shards on disk.

    KEY/00000.jsonl.gz    rows in order, each as it goes on, or why it does not; at the end, what was counted so far
    KEY/memory/           what filters remember, while the work goes on
    KEY/ledger.json       what became of the rows; there when the work has ended

A shard is there whole or not at all, and a filter has made its memory last before the shard is
there: work that was interrupted goes on after the last shard, to the same result. Where a row
stands is kept as a mark (`zephyr_kit.places`), for the files may be elsewhere next time.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.cache import used
from zephyr_kit.example import BadRow, Example, ExampleError, Message, Removed, check_message
from zephyr_kit.places import Places
from zephyr_kit.protocols import Filter, Memory, Verdict
from zephyr_kit.records import read_sealed, sealed
from zephyr_kit.tally import SieveLedger, Tally
from zephyr_kit.workers import in_workers

FORMAT = 3
"""Part of every key: what was sifted in another format is sifted anew."""
ROWS_PER_SHARD = 4096
MEND = "remove the folder it is in, and the rows are sifted again"

Row = Example | BadRow | Removed


class SieveError(ZkitError):
    """A filter that failed, or a shard that cannot be read."""


@dataclass(frozen=True)
class Sifted:
    """Rows that have passed the filters."""

    folder: Path

    def rows(self) -> Iterator[Row]:
        """Every row that came, in order."""
        for shard in _shards(self.folder):
            with closing(_lines(shard)) as lines:
                yield from (_row(line) for line in lines if "ledger" not in line)

    @cached_property
    def ledger(self) -> dict[str, Any]:
        """What became of them."""
        facts: dict[str, Any] = read_sealed(self.folder / "ledger.json", MEND)
        return facts


@dataclass(frozen=True, slots=True)
class Looked:
    """A row, and what each filter in turn makes of it, until one removes it."""

    row: Row
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class Sieve:
    """Rows, and the filters that they are to pass."""

    rows: Callable[[], Iterator[Row]]
    key: Sequence[Any]
    """JSON values that change whenever the rows, or what the filters do, would."""
    filters: tuple[Filter, ...]
    places: Places = field(default_factory=Places)
    """Where the rows stand, which is no part of the key."""

    def sift(self, cache: Path, *, on_rows: Callable[[int], None] | None = None) -> Sifted:
        """The rows that have passed: from the cache if they are there, else sifted into it."""
        folder = cache / hashlib.blake2b(json.dumps([FORMAT, self.key]).encode(), digest_size=16).hexdigest()
        if not (folder / "ledger.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                # Another process may have done it meanwhile.
                if not (folder / "ledger.json").exists():
                    self._sift(folder, on_rows or (lambda _: None))
        used(folder / "ledger.json")
        return Sifted(folder)

    def _sift(self, folder: Path, on_rows: Callable[[int], None]) -> None:
        names = filter_names(self.filters)
        ledger = _so_far(folder) or SieveLedger(filters=[Tally(name) for name in names])
        with ExitStack() as stack:
            stack.enter_context(self.places.telling())
            memories = [self._memory(each, folder / "memory" / str(n), ledger.read, stack) for n, each in enumerate(self.filters)]
            rows = itertools.islice(self.rows(), ledger.read, None)
            looked = stack.enter_context(closing(in_workers(partial(look, self.filters, names), rows)))
            settled = (_settle(self._marked(each), ledger, memories, on_rows) for each in looked)
            for number, first in enumerate(settled, len(_shards(folder))):
                shard = itertools.chain([first], itertools.islice(settled, ROWS_PER_SHARD - 1))
                _write_shard(folder / f"{number:05d}.jsonl.gz", shard, ledger, memories)
        shutil.rmtree(folder / "memory", ignore_errors=True)
        with _whole(folder / "ledger.json") as staging:
            staging.write_text(json.dumps(sealed(ledger.in_order()), ensure_ascii=True, indent=1), "utf-8")

    def _marked(self, looked: Looked) -> Looked:
        """Only now, so that a filter that fails tells of the file."""
        row = self.places.marked(looked.row)
        after = (verdict.example and replace(verdict.example, origin=row.origin) for verdict in looked.verdicts)
        return Looked(row, tuple(replace(verdict, example=each) for verdict, each in zip(looked.verdicts, after, strict=True)))

    def _memory(self, each: Filter, folder: Path, first: int, stack: ExitStack) -> Memory | None:
        folder.mkdir(parents=True, exist_ok=True)
        memory = each.memory(folder, first=first)
        return None if memory is None else stack.enter_context(memory)


def look(filters: Sequence[Filter], names: Sequence[str], row: Row) -> Looked:
    """Show a row to one filter after another, as if none remembered others like it."""
    if not isinstance(row, Example):
        return Looked(row)
    try:
        _check_text(row)
    except ExampleError as error:
        return Looked(BadRow(row.origin, str(error)))
    example, verdicts = row, []
    for each, name in zip(filters, names, strict=True):
        try:
            verdict = each.look(example)
        except ZkitError:
            raise
        except Exception as error:  # a filter is somebody's program: it may raise anything
            raise SieveError(f"{row.origin}: filter {name} failed: {type(error).__name__}: {error}") from error
        verdicts.append(verdict)
        if verdict.example is None:
            break
        example = verdict.example
    return Looked(row, tuple(verdicts))


def filter_names(filters: Sequence[Filter]) -> list[str]:
    """What each is called: its class in small letters, with a number where there are more of one."""
    plain = [class_name(each) for each in filters]
    return [name if plain.count(name) == 1 else f"{name} {plain[: n + 1].count(name)}" for n, name in enumerate(plain)]


def class_name(each: object) -> str:
    """That of its class, in small letters."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(each).__name__).lower()


def _check_text(example: Example) -> None:
    """Filters read text, and may trust that they get nothing else."""
    turns: Iterator[Any] = itertools.chain(example.prompt, *example.completions)
    for message in turns:
        if not isinstance(message.content, str):
            check_message(message)


def _settle(looked: Looked, ledger: SieveLedger, memories: Sequence[Memory | None], on_rows: Callable[[int], None]) -> Row:
    """Let the memories meet a row, in the order of the rows, and count what becomes of it."""
    passed = _pass(looked, ledger, memories)
    ledger.read += 1
    ledger.kept += isinstance(passed, Example)
    ledger.removed += isinstance(passed, Removed)
    ledger.bad += isinstance(passed, BadRow)
    on_rows(ledger.read)
    return passed


def _pass(looked: Looked, ledger: SieveLedger, memories: Sequence[Memory | None]) -> Row:
    example = looked.row
    if not isinstance(example, Example):
        return example
    for verdict, memory, tally in zip(looked.verdicts, memories, ledger.filters, strict=False):
        after, reason = verdict.example, verdict.reason
        if after is not None and memory is not None and (met := memory.meet(ledger.read, verdict.trace, example.origin)):
            after, reason = None, met
        tally.enter(example, after, reason)
        if after is None:
            return Removed(example.origin, f"filter {tally.name}", reason)
        example = after
    return example


def _write_shard(path: Path, rows: Iterator[Row], ledger: SieveLedger, memories: Sequence[Memory | None]) -> None:
    with _whole(path) as staging:
        # Neither name nor time in the header: the same rows make the same bytes.
        with staging.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
            for row in rows:
                file.write(_line(_record(row)))
            file.write(_line({"ledger": ledger.facts()}))
        for memory in memories:
            if memory is not None:
                memory.keep()


def _line(record: Any) -> bytes:
    # In ASCII, since a text may hold half of a surrogate pair.
    return (json.dumps(record, separators=(",", ":")) + "\n").encode("ascii")


def _record(row: Row) -> dict[str, Any]:
    if isinstance(row, BadRow):
        return {"origin": row.origin, "bad": row.reason}
    if isinstance(row, Removed):
        return {"origin": row.origin, "by": row.by, "removed": row.reason}
    prompt, *completions = [[(turn.role, turn.content) for turn in turns] for turns in (row.prompt, *row.completions)]
    return {"origin": row.origin, "prompt": prompt, "completions": completions, "scores": row.scores, "notes": row.notes}


def _row(record: dict[str, Any]) -> Row:
    if "bad" in record:
        return BadRow(record["origin"], record["bad"])
    if "removed" in record:
        return Removed(record["origin"], record["by"], record["removed"])
    prompt, *completions = [tuple(Message(*turn) for turn in turns) for turns in (record["prompt"], *record["completions"])]
    scores = None if record["scores"] is None else tuple(record["scores"])
    return Example(prompt, tuple(completions), scores, record["origin"], tuple(record["notes"]))


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.jsonl.gz"))


def _lines(shard: Path) -> Generator[dict[str, Any]]:
    try:
        with gzip.open(shard, "rb") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise SieveError(f"{shard}: damaged ({error}); {MEND}") from error


def _so_far(folder: Path) -> SieveLedger | None:
    """What had been counted when the last shard was written; None if there is none."""
    shards = _shards(folder)
    if not shards:
        return None
    *_, last = _lines(shards[-1])
    return SieveLedger.again(last["ledger"])


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to write to, which is put in its place when the work on it has ended well."""
    staging = path.with_name(f".{path.name}")
    try:
        yield staging
        with staging.open("rb") as file:
            os.fsync(file.fileno())
        staging.rename(path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process works on it; another waits."""
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

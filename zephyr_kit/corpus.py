"""Examples tokenised once into memory-mapped arrays, with a ledger of every row.

A corpus is a folder: `tokens.npy` and `trained.npy` hold all pieces end to end, `ends.npy`
where each piece ends, `first.npy` which piece is each example's prompt (its completions
follow), `origins.txt` where each example stood, `ledger.json` what became of every row and
`quarantine.jsonl` the rows that were not taken, each with its reason.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zephyr_kit import ZkitError
from zephyr_kit.batch import Flags, Ids, Tree
from zephyr_kit.example import BadRow, Example, ExampleError, check
from zephyr_kit.plan import Indices
from zephyr_kit.protocols import DataSource, Tokenizer

FORMAT = 1
"""Part of every key: a corpus of another format is made anew."""
CHUNK = 256
CHUNKS_BEFORE_WORKERS = 16

TooLong = Literal["cut", "drop", "refuse"]


class DataError(ZkitError):
    """Data that cannot be trained on; the message names the first rows at fault."""


@dataclass(frozen=True, slots=True)
class Portion:
    """A data source, and how much of it to take."""

    source: DataSource
    fraction: float = 1.0
    limit: int | None = None
    seed: int = 0

    def rows(self) -> Iterator[Example | BadRow]:
        """The rows taken: the first `limit` of a random `fraction`, in the source's order."""
        return itertools.islice(self._drawn(), self.limit)

    def _drawn(self) -> Iterator[Example | BadRow]:
        rows = self.source.rows()
        if self.fraction == 1.0:
            return rows
        draw = np.random.Generator(np.random.Philox(key=[self.seed, 0]))
        return (row for row in rows if draw.random() < self.fraction)


@dataclass(frozen=True, slots=True)
class Door:
    """What an example must satisfy to enter a corpus."""

    completions: int
    max_length: int
    too_long: TooLong

    def admit(self, row: Example | BadRow, tokenizer: Tokenizer) -> tuple[Tree | None, str | None]:
        """The example's tree, and what is to be said of it: why it was refused, or that it was cut."""
        if isinstance(row, BadRow):
            return None, row.reason
        try:
            self._check(row)
            return self._fit(tokenizer.encode(row))
        except ExampleError as error:
            return None, str(error)

    def _check(self, example: Example) -> None:
        check(example)
        if len(example.completions) != self.completions:
            raise ExampleError(f"has {len(example.completions)} completion(s), but the objective compares {self.completions}")

    def _fit(self, tree: Tree) -> tuple[Tree, str | None]:
        if not len(tree.prompt):
            tree = Tree(tree.prompt, tree.completions, tuple(_all_but_first(flags) for flags in tree.trained))
        length = len(tree.prompt) + max(map(len, tree.completions))
        if length <= self.max_length:
            self._check_trained(tree, "has no trained token")
            return tree, None
        if self.too_long != "cut":
            raise ExampleError(f"is longer than max_length = {self.max_length} tokens")
        room = max(0, self.max_length - len(tree.prompt))
        cut = Tree(tree.prompt, tuple(ids[:room] for ids in tree.completions), tuple(flags[:room] for flags in tree.trained))
        self._check_trained(cut, f"its prompt leaves nothing to train within max_length = {self.max_length} tokens")
        if len({ids.tobytes() for ids in cut.completions}) < len(cut.completions):
            raise ExampleError(f"its completions are identical within max_length = {self.max_length} tokens")
        return cut, f"cut to max_length = {self.max_length} tokens"

    def _check_trained(self, tree: Tree, reason: str) -> None:
        if not all(flags.any() for flags in tree.trained):
            raise ExampleError(reason)


@dataclass
class Ledger:
    """What became of every row."""

    read: int = 0
    kept: int = 0
    cut: int = 0
    tokens: int = 0
    trained: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first_bad: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Rows that were not taken."""
        return self.read - self.kept

    def facts(self) -> dict[str, Any]:
        """JSON values."""
        counts = {"read": self.read, "kept": self.kept, "bad": self.bad, "cut": self.cut, "tokens": self.tokens, "trained": self.trained}
        return {**counts, "reasons": dict(self.reasons.most_common()), "first_bad": self.first_bad}


@dataclass(frozen=True)
class Corpus:
    """Examples by index."""

    folder: Path

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, index: int) -> Tree:
        first = int(self._first[index])
        end = int(self._first[index + 1]) if index + 1 < len(self._first) else len(self._ends) - 1
        spans = [slice(int(self._ends[piece]), int(self._ends[piece + 1])) for piece in range(first, end)]
        prompt, *completions = spans
        return Tree(self._tokens[prompt], tuple(self._tokens[s] for s in completions), tuple(self._trained[s] for s in completions))

    @cached_property
    def lengths(self) -> Indices:
        """Tokens of each example, its prompt counted once."""
        cuts = np.append(self._ends[self._first], self._ends[-1])
        return np.diff(cuts).astype(np.int64)

    def row_lengths(self, *, share_prompts: bool) -> Indices:
        """Tokens that each example takes in a row."""
        prompts = self._ends[self._first + 1] - self._ends[self._first]
        repeats = np.diff(np.append(self._first, len(self._ends) - 1)) - 2
        return self.lengths if share_prompts else self.lengths + prompts * repeats

    @cached_property
    def num_targets(self) -> Indices:
        """Trained tokens of each example."""
        return np.add.reduceat(self._trained, self._ends[self._first], dtype=np.int64)

    @cached_property
    def ledger(self) -> dict[str, Any]:
        """What became of every row that was read."""
        facts: dict[str, Any] = json.loads((self.folder / "ledger.json").read_text("utf-8"))
        return facts

    @cached_property
    def origins(self) -> list[str]:
        """Where each example stood, as `file:line`."""
        return (self.folder / "origins.txt").read_text("utf-8").split("\n")[:-1]

    @cached_property
    def _tokens(self) -> Ids:
        return self._array("tokens")

    @cached_property
    def _trained(self) -> Flags:
        return self._array("trained")

    @cached_property
    def _ends(self) -> Indices:
        return self._array("ends")

    @cached_property
    def _first(self) -> Indices:
        return self._array("first")

    def _array(self, name: str) -> Any:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def corpus_key(portions: Sequence[Portion], tokenizer: Tokenizer, door: Door) -> str:
    """The name of the corpus that these would make: equal if and only if its content is."""
    parts = [[p.source.fingerprint(), p.fraction, p.limit, p.seed] for p in portions]
    content = [FORMAT, parts, tokenizer.fingerprint(), door.completions, door.max_length, door.too_long]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def prepare(
    portions: Sequence[Portion],
    tokenizer: Tokenizer,
    door: Door,
    *,
    cache: Path,
    on_rows: Callable[[int], None] | None = None,
) -> Corpus:
    """The corpus of these rows: from the cache if it is there, else tokenised into it."""
    folder = cache / corpus_key(portions, tokenizer, door)
    if not (folder / "ledger.json").exists():
        staging = cache / f".{folder.name}.{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            _write(staging, portions, tokenizer, door, on_rows or (lambda _: None))
            _put(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Corpus(folder)


def refuse_bad_rows(corpus: Corpus, *, allowed: float, name: str) -> None:
    """Stop when more than the allowed share of rows was bad, or nothing is left."""
    ledger = corpus.ledger
    share = ledger["bad"] / max(1, ledger["read"])
    if not ledger["read"]:
        raise DataError(f"{name}: the data has no rows")
    if share > allowed or not ledger["kept"]:
        table = "\n".join(f"  {count:6d} x {reason}" for reason, count in ledger["reasons"].items())
        first = "\n".join(f"  {line}" for line in ledger["first_bad"])
        raise DataError(
            f"{name}: {ledger['bad']} of {ledger['read']} rows are bad ({share:.1%}), more than bad_rows = {allowed} allows:\n{table}\n"
            f"the first of them:\n{first}\nall are in {corpus.folder / 'quarantine.jsonl'}; mend them, or allow more with bad_rows"
        )


def _all_but_first(flags: Flags) -> Flags:
    """Without a prompt, nothing comes before the first token from which it could be predicted."""
    return np.concatenate([np.zeros(1, np.bool_), flags[1:]])


Admitted = tuple[str, Tree | None, str | None]


def _admit_chunk(rows: Sequence[Example | BadRow], *, tokenizer: Tokenizer, door: Door) -> list[Admitted]:
    return [(row.origin, *door.admit(row, tokenizer)) for row in rows]


def _admit(rows: Iterator[Example | BadRow], tokenizer: Tokenizer, door: Door) -> Iterator[Admitted]:
    """Tokenise, in worker processes once the data is large enough to repay starting them."""
    work = partial(_admit_chunk, tokenizer=tokenizer, door=door)
    chunks = iter(lambda: list(itertools.islice(rows, CHUNK)), [])
    head = list(itertools.islice(chunks, CHUNKS_BEFORE_WORKERS))
    workers = os.cpu_count() or 1
    if len(head) < CHUNKS_BEFORE_WORKERS or workers == 1:
        for chunk in itertools.chain(head, chunks):
            yield from work(chunk)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(work, chunk) for chunk in head]
        for chunk in chunks:
            yield from waiting.pop(0).result()
            waiting.append(pool.submit(work, chunk))
        for future in waiting:
            yield from future.result()


def _write(folder: Path, portions: Sequence[Portion], tokenizer: Tokenizer, door: Door, on_rows: Callable[[int], None]) -> None:
    ledger, first, ends = Ledger(), [0], [0]
    rows = itertools.chain.from_iterable(portion.rows() for portion in portions)
    with (
        (folder / "tokens.raw").open("wb") as tokens,
        (folder / "trained.raw").open("wb") as trained,
        (folder / "origins.txt").open("w", encoding="utf-8") as origins,
        (folder / "quarantine.jsonl").open("w", encoding="utf-8") as quarantine,
    ):
        for origin, tree, remark in _admit(rows, tokenizer, door):
            _enter(ledger, origin, tree, remark, quarantine.write)
            if tree is not None:
                origins.write(origin.replace("\n", " ") + "\n")
                for ids, flags in _pieces(tree):
                    tokens.write(ids.astype(np.int32).tobytes())
                    trained.write(flags.astype(np.bool_).tobytes())
                    ends.append(ends[-1] + len(ids))
                first.append(len(ends) - 1)
            on_rows(ledger.read)
    _finish(folder, ledger, first, ends)


def _enter(ledger: Ledger, origin: str, tree: Tree | None, remark: str | None, quarantine: Callable[[str], object]) -> None:
    ledger.read += 1
    if tree is not None:
        ledger.kept += 1
        ledger.cut += remark is not None
        ledger.tokens += tree.num_tokens
        ledger.trained += sum(int(flags.sum()) for flags in tree.trained)
    if remark is not None:
        ledger.reasons[remark] += 1
        if tree is None and len(ledger.first_bad) < 5:
            ledger.first_bad.append(f"{origin}: {remark}")
        quarantine(json.dumps({"origin": origin, "kept": tree is not None, "reason": remark}, ensure_ascii=False) + "\n")


def _pieces(tree: Tree) -> Iterable[tuple[Ids, Flags]]:
    yield tree.prompt, np.zeros(len(tree.prompt), np.bool_)
    yield from zip(tree.completions, tree.trained, strict=True)


def _finish(folder: Path, ledger: Ledger, first: list[int], ends: list[int]) -> None:
    np.save(folder / "ends.npy", np.array(ends, np.int64))
    np.save(folder / "first.npy", np.array(first[:-1], np.int64))
    _as_npy(folder / "tokens", np.dtype(np.int32))
    _as_npy(folder / "trained", np.dtype(np.bool_))
    (folder / "ledger.json").write_text(json.dumps(ledger.facts(), ensure_ascii=False, indent=1), "utf-8")


def _as_npy(path: Path, dtype: np.dtype[Any]) -> None:
    """Turn raw values into an array file, without holding them in memory."""
    raw = path.with_suffix(".raw")
    with path.with_suffix(".npy").open("wb") as out, raw.open("rb") as values:
        shape = (raw.stat().st_size // dtype.itemsize,)
        np.lib.format.write_array_header_1_0(out, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
        shutil.copyfileobj(values, out, 1 << 20)
    raw.unlink()


def _put(staging: Path, folder: Path) -> None:
    """Move the finished corpus into place; another process may have made the same one meanwhile."""
    try:
        staging.rename(folder)
    except OSError:
        if not (folder / "ledger.json").exists():
            raise

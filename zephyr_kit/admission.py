"""Which rows enter a corpus, and the work of tokenising them, in worker processes where that pays."""

from __future__ import annotations

import itertools
import os
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Literal

import numpy as np

from zephyr_kit.batch import Flags, Tree
from zephyr_kit.example import BadRow, Example, ExampleError, check
from zephyr_kit.protocols import Tokenizer

CHUNK = 256
CHUNKS_BEFORE_WORKERS = 16

TooLong = Literal["cut", "drop", "refuse"]
Fate = Literal["kept", "cut", "dropped", "bad"]


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a row."""

    origin: str
    fate: Fate
    tree: Tree | None = None
    reason: str | None = None
    """Why it was not kept as it is."""


@dataclass(frozen=True, slots=True)
class Door:
    """What an example must satisfy to enter a corpus."""

    completions: int
    max_length: int
    too_long: TooLong

    def admit(self, row: Example | BadRow, tokenizer: Tokenizer) -> Admission:
        """The example's tree, or why there is none."""
        if isinstance(row, BadRow):
            return Admission(row.origin, "bad", reason=row.reason)
        try:
            self._check(row)
            return self._fit(row.origin, tokenizer.encode(row))
        except ExampleError as error:
            return Admission(row.origin, "bad", reason=str(error))

    def _check(self, example: Example) -> None:
        check(example)
        if len(example.completions) != self.completions:
            raise ExampleError(f"has {len(example.completions)} completion(s), but the objective compares {self.completions}")

    def _fit(self, origin: str, tree: Tree) -> Admission:
        if not len(tree.prompt):
            tree = Tree(tree.prompt, tree.completions, tuple(_all_but_first(flags) for flags in tree.trained))
        _check_learnable(tree, "has no trained token", "its completions are identical in tokens")
        length = len(tree.prompt) + max(map(len, tree.completions))
        if length <= self.max_length:
            return Admission(origin, "kept", tree)
        limit = f"max_length = {self.max_length} tokens"
        if self.too_long != "cut":
            return Admission(origin, "dropped" if self.too_long == "drop" else "bad", reason=f"longer than {limit}")
        room = max(0, self.max_length - len(tree.prompt))
        cut = Tree(tree.prompt, tuple(ids[:room] for ids in tree.completions), tuple(flags[:room] for flags in tree.trained))
        _check_learnable(cut, f"its prompt leaves nothing to train within {limit}", f"its completions are identical within {limit}")
        return Admission(origin, "cut", cut, f"cut to {limit}")


def admit(rows: Iterator[Example | BadRow], tokenizer: Tokenizer, door: Door) -> Iterator[Admission]:
    """Tokenise, in worker processes once the data is large enough to repay starting them."""
    chunks = iter(lambda: list(itertools.islice(rows, CHUNK)), [])
    head = list(itertools.islice(chunks, CHUNKS_BEFORE_WORKERS))
    workers = num_processors()
    if len(head) < CHUNKS_BEFORE_WORKERS or workers == 1:
        for row in itertools.chain.from_iterable(itertools.chain(head, chunks)):
            yield door.admit(row, tokenizer)
        return
    work = partial(_admit_chunk, pickle.dumps((tokenizer, door)))
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        waiting = deque(pool.submit(work, chunk) for chunk in head)
        for chunk in chunks:
            yield from waiting.popleft().result()
            waiting.append(pool.submit(work, chunk))
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _admit_chunk(packed: bytes, rows: Sequence[Example | BadRow]) -> list[Admission]:
    tokenizer, door = _unpacked(packed)
    return [door.admit(row, tokenizer) for row in rows]


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> tuple[Tokenizer, Door]:
    """A tokenizer takes a while to unpickle: once in each worker, not once for each chunk."""
    tokenizer, door = pickle.loads(packed)  # noqa: S301  from our own process
    return tokenizer, door


def _end_with_parent() -> None:
    """A worker would wait for work for ever when its parent is killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def num_processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_learnable(tree: Tree, untrained: str, identical: str) -> None:
    if not all(flags.any() for flags in tree.trained):
        raise ExampleError(untrained)
    if len({ids.tobytes() for ids in tree.completions}) < len(tree.completions):
        raise ExampleError(identical)


def _all_but_first(flags: Flags) -> Flags:
    """Without a prompt, nothing comes before the first token from which it could be predicted."""
    return np.concatenate([np.zeros(1, np.bool_), flags[1:]])

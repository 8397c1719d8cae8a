"""Work on many items in worker processes, where there are enough of them to repay starting some."""

from __future__ import annotations

import itertools
import os
import pickle
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache, partial
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

from zephyr_kit import ZkitError

CHUNK = 256
CHUNKS_BEFORE_WORKERS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_workers(work: Callable[[Item], Result], items: Iterator[Item]) -> Generator[Result]:
    """The result for each item, in order; `work`, items, results and errors are pickled.

    No more than `CHUNKS_BEFORE_WORKERS` chunks are held at once, however many items there are.
    """
    chunks = iter(lambda: list(itertools.islice(items, CHUNK)), [])
    head = list(itertools.islice(chunks, CHUNKS_BEFORE_WORKERS))
    workers = num_processors()
    if len(head) < CHUNKS_BEFORE_WORKERS or workers == 1:
        for chunk in itertools.chain(head, chunks):
            yield from map(work, chunk)
        return
    work_on = partial(_work_on, pickle.dumps(work))
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        waiting = deque(pool.submit(work_on, chunk) for chunk in head)
        del head
        for chunk in chunks:
            yield from waiting.popleft().result()
            waiting.append(pool.submit(work_on, chunk))
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ZkitError("a worker process was ended from outside, most likely by the system for want of memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


def num_processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work_on(packed: bytes, items: Sequence[Any]) -> list[Any]:
    try:
        return list(map(_unpacked(packed), items))
    except Exception as error:
        portable = _portable(error)
        if portable is error:
            raise
        raise portable from error


def _portable(error: Exception) -> Exception:
    """The error itself if it survives pickling; else a plain one that says the same, for what cannot be unpickled ends the pool."""
    with suppress(Exception):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
        if type(again) is type(error) and str(again) == str(error):
            return error
    return ZkitError(str(error)) if isinstance(error, ZkitError) else RuntimeError(f"{type(error).__name__}: {error}")


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Callable[[Any], Any]:
    """What the work needs may take a while to unpickle (a tokenizer does): once in each worker, not once for each chunk."""
    work: Callable[[Any], Any] = pickle.loads(packed)  # noqa: S301  from our own process
    return work


def _end_with_parent() -> None:
    """A worker would wait for work for ever when its parent is killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()

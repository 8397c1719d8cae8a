"""An answer within a time, whoever is slow."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, ask: Callable[[], T]) -> T | None:
    """What `ask` returns, or raises; None when it takes longer.

    It asks in a thread of its own, which is left behind and keeps no process alive: a dead name
    server blocks for longer than any time limit of HTTP.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=work, daemon=True).start()
    wait([answer], seconds)
    return answer.result() if answer.done() else None

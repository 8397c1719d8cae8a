"""Answers within a time."""

from __future__ import annotations

import threading

import pytest

from zephyr_kit.patience import within


def test_gives_what_is_answered_in_time() -> None:
    assert within(200, lambda: "yes") == "yes"


def test_raises_what_the_question_raises() -> None:
    with pytest.raises(OSError, match="no route"):
        within(200, lambda: (_ for _ in ()).throw(OSError("no route")))


def test_does_not_wait_for_who_is_slow() -> None:
    go, gone = threading.Event(), threading.Event()

    def slow() -> str:
        go.wait(200)
        gone.set()
        return "late"

    assert within(0.05, slow) is None
    assert not gone.is_set()
    go.set()
    assert gone.wait(200)

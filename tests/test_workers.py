"""Errors in worker processes: each comes back as what it is, or says so."""

from __future__ import annotations

from functools import partial

import pytest

from zephyr_kit import ZkitError, workers
from zephyr_kit.sieve import SieveError


class Costly(ZkitError):
    """Of two parts: to unpickle it, it is called with one."""

    def __init__(self, what: str, price: int) -> None:
        super().__init__(f"{what} costs {price}")


class Odd(Exception):
    """Likewise, and no fault of the user."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


class Stray(ZkitError):
    """Comes back, but says something else."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no {what}")


class Attached(ZkitError):
    """Holds what cannot be pickled."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.work = lambda: None


ERRORS = {
    "costly": (Costly("it", 3), ZkitError, "it costs 3"),
    "odd": (Odd("it", "no"), RuntimeError, "Odd: it: no"),
    "stray": (Stray("bread"), ZkitError, "no bread"),
    "attached": (Attached("it"), ZkitError, "it"),
    "plain": (SieveError("a damaged one"), SieveError, "a damaged one"),
    "key": (KeyError("gone"), KeyError, "'gone'"),
}


def fail(name: str, number: int) -> int:
    if number == 9:
        raise ERRORS[name][0]
    return number


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_comes_back_whatever_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be unpickled would end the pool, and be taken for want of memory."""
    monkeypatch.setattr(workers, "CHUNK", 2)
    monkeypatch.setattr(workers, "CHUNKS_BEFORE_WORKERS", 2)
    monkeypatch.setattr(workers, "num_processors", lambda: 2)
    _, kind, told = ERRORS[name]
    with pytest.raises(kind) as caught:
        list(workers.in_workers(partial(fail, name), iter(range(20))))
    assert type(caught.value) is kind
    assert str(caught.value) == told

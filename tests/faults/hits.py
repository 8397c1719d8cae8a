"""Faults that strike a process from within, when it comes to a certain place."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

PHASES = {
    "tokenising": "zephyr_kit.corpus:write_corpus",
    "putting the cache in place": "zephyr_kit.corpus:_put",
    "foreseeing": "zephyr_kit.pipeline:foresee",
    "hand-over": "zephyr_kit.pipeline:Pipeline._note_work",
    "reference scores": "zephyr_kit.reference:Scoring._score_missing",
    "held-out data": "zephyr_kit.engine:Trainer.evaluate",
    "export": "zkit_mistral.policy:MistralPolicy.save",
    "merging adapters": "zkit_mistral.adapters:Adapters._save_merged",
}
RESUMING = {"reading a checkpoint": "zephyr_kit.checkpoint:read", "going back to it": "zephyr_kit.engine:Trainer.load_state"}
SAVE = "zephyr_kit.checkpoint:Checkpoints.write"


@dataclass(frozen=True)
class Signal:
    """Sends a signal to its own process some time after a place was come to."""

    place: str
    number: int = signal.SIGKILL
    call: int = 1
    """At which call of it."""
    after: float = 0.0
    """Seconds."""
    again: float | None = None
    """And once more, so many seconds later."""
    rank: int | None = None
    """Only on this one of several."""
    start: int | None = None
    """Only after all ranks were started again so often."""

    def __call__(self) -> None:
        replace(self.place, lambda function: _calling(function, self._strike, self.call))

    def _strike(self) -> None:
        if not _is_here(self.rank) or self.start not in (None, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))):
            return
        if self.after == 0 and self.again is None:
            os.kill(os.getpid(), self.number)
        else:
            threading.Thread(target=self._later, daemon=True).start()

    def _later(self) -> None:
        time.sleep(self.after)
        os.kill(os.getpid(), self.number)
        if self.again is not None:
            time.sleep(self.again)
            os.kill(os.getpid(), self.number)


def _is_here(rank: int | None) -> bool:
    return rank is None or rank == int(os.environ.get("RANK", "0"))


def replace(place: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put what `change` makes of a function in its place; `module:Class.method` or `module:function`."""
    module, _, path = place.partition(":")
    holder: Any = importlib.import_module(module)
    *way, name = path.split(".")
    for step in way:
        holder = getattr(holder, step)
    setattr(holder, name, change(getattr(holder, name)))


def _calling(function: Callable[..., Any], strike: Callable[[], None], at: int) -> Callable[..., Any]:
    calls = 0

    @wraps(function)
    def struck(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            strike()
        return function(*args, **options)

    return struck


@dataclass(frozen=True)
class Slow:
    """Makes a function take longer."""

    place: str
    seconds: float

    def __call__(self) -> None:
        def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
            def wait_first(*args: Any, **options: Any) -> Any:
                time.sleep(self.seconds)
                return function(*args, **options)

            return wait_first

        replace(self.place, slowed)


@dataclass(frozen=True)
class Both:
    """One after the other."""

    first: Callable[[], None]
    second: Callable[[], None]

    def __call__(self) -> None:
        self.first()
        self.second()


@dataclass(frozen=True)
class Poison:
    """Makes the loss, or a gradient, of some steps (from 0) what is no number."""

    steps: tuple[int, ...]
    value: float
    what: str = "loss"
    rank: int | None = None
    """Only on this one of several."""

    def __call__(self) -> None:
        def poisoned(gradients: Callable[..., Any]) -> Callable[..., Any]:
            def compute(trainer: Any, *given: Any) -> Any:
                totals, lack = gradients(trainer, *given)
                if trainer.num_steps_taken in self.steps and _is_here(self.rank):
                    if self.what == "loss":
                        totals["loss"] = totals["loss"] * self.value
                    else:
                        next(p for p in trainer.parameters if p.grad is not None).grad.view(-1)[0] = self.value
                return totals, lack

            return compute

        replace("zephyr_kit.engine:Trainer._gradients", poisoned)


@dataclass(frozen=True)
class LittleMemory:
    """A device that holds so many tokens of a batch that is trained on."""

    tokens: int

    def __call__(self) -> None:
        import torch

        def limited(score: Callable[..., Any]) -> Callable[..., Any]:
            def scored(policy: Any, batch: Any) -> Any:
                logp = score(policy, batch)
                # After the first pieces of work, so that there are gradients to be dropped.
                if torch.is_grad_enabled() and len(batch.tokens_T) > self.tokens and not isinstance(logp, torch._subclasses.FakeTensor):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
                return logp

            return scored

        replace("zkit_mistral.policy:MistralPolicy.score", limited)


@dataclass(frozen=True)
class FullDisk:
    """There is no room for a checkpoint from some step on."""

    step: int

    def __call__(self) -> None:
        def full(write: Callable[..., Any]) -> Callable[..., Any]:
            def writing(checkpoints: Any, begun: Any) -> Any:
                if begun.state.step >= self.step:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(checkpoints, begun)

            return writing

        replace(SAVE, full)

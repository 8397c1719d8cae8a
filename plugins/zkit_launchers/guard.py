"""An agent that tells a run that gets on from one that does not, and says what went wrong first."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError

from zephyr_kit import ZkitError
from zephyr_kit.exits import Exit
from zephyr_kit.heartbeat import Signs
from zephyr_kit.stopping import SIGNALS, Stop, Stopped

STARTS_IN_VAIN = 3
"""So often is a run started again that takes no new step."""
SECONDS_OF_SILENCE = 30.0
"""After which a rank that beat before is taken for frozen."""
SECONDS_TO_SAVE = 3600
"""Ranks that are asked to end write a checkpoint first."""
SECONDS_TO_TELL = 1.0
"""For the stacks of all threads to be written."""
NEARLY_AT_ONCE = 2.0
"""Seconds; who loses a peer may be noticed before the peer is."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Where the signs of the ranks and their logs are, and who is told."""

    signs: Path
    logs: Path
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Cause:
    """What went wrong first."""

    time: float
    text: str
    rank: int
    code: int
    """The exit code of the process; below 0, the signal that ended it."""

    @property
    def exit(self) -> Exit:
        """What the process has chosen, or was asked for before it listened: starting it again would end in the same way. Or a crash."""
        known = {int(code): code for code in Exit} | {-number: code for number, code in SIGNALS.items()}
        return known.get(self.code, Exit.CRASHED)


class RanksFailed(ZkitError):
    """What went wrong first, and will not go well by itself."""

    def __init__(self, text: str, code: Exit) -> None:
        super().__init__(text)
        self.exit = code


class Guard(LocalElasticAgent):
    """torch's agent on one machine."""

    def __init__(self, spec: WorkerSpec, logs: LogsSpecs, watched: Watched, stop: Stop) -> None:
        super().__init__(spec, logs, shutdown_timeout=SECONDS_TO_SAVE)
        self._watched, self._stop = watched, stop
        self._best_step = self._in_vain = 0
        self._frozen: dict[int, float] = {}
        self._ended: dict[int, tuple[float, int]] = {}
        self._failed: RanksFailed | Stopped | None = None

    def has_begun(self) -> bool:
        """Whether a step was taken, or the ranks of this machine had come so far that each has told why it ended."""
        told = [signs.failure() for signs in self._signs(self._worker_group)]
        return self._best_step > 0 or (bool(told) and None not in told)

    def refuse_failure(self) -> None:
        """Raise what has ended the ranks for good."""
        if self._failed is not None:
            raise self._failed

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        try:
            with self._stop.at_once():
                super()._rendezvous(worker_group)
        except RendezvousTimeoutError as error:
            raise ZkitError("the other machines have not come: start the same command on each of them") from error

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._frozen.clear()
        self._ended.clear()
        for signs in self._signs(worker_group):
            signs.clear()
        pids: dict[int, Any] = super()._start_workers(worker_group)
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._look_for_ended(worker_group)
        self._pass_request_on(worker_group)
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.HEALTHY:
            self._look_for_frozen(worker_group)
        elif result.is_failed():
            self._judge(worker_group, result.failures)
        return result

    def _pass_request_on(self, group: WorkerGroup) -> None:
        """Asked to stop, ask the ranks, and wait for them."""
        asked = self._stop.requested()
        if asked is not None:
            assert self._pcontext is not None
            listen = all(signs.beat.exists() for signs in self._signs(group))
            number = next(number for number, code in SIGNALS.items() if code is asked)
            self._pcontext.close(number if listen else signal.SIGTERM, SECONDS_TO_SAVE)

    def _look_for_ended(self, group: WorkerGroup) -> None:
        """Before the others are ended; who waits for a word of one would otherwise wait until torch's patience with it ends."""
        assert isinstance(self._pcontext, SubprocessContext)
        for rank, handler in self._pcontext.subprocess_handlers.items():
            if code := handler.proc.poll():
                self._ended.setdefault(group.workers[rank].global_rank, (time.time(), code))
                self._break(group)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self._break(worker_group)  # one on another machine may have ended
        super()._restart_workers(worker_group)

    def _break(self, group: WorkerGroup) -> None:
        next(self._signs(group)).broken.touch()

    def _judge(self, group: WorkerGroup, failures: Mapping[int, Any]) -> None:
        """Whether to start again."""
        cause = self._first_cause(group, failures)
        step = max(signs.step() for signs in self._signs(group))
        self._in_vain = 0 if step > self._best_step else self._in_vain + 1
        self._best_step = max(step, self._best_step)
        asked, where = self._stop.requested(), f"(logs in {self._watched.logs})"
        if cause.exit in SIGNALS.values():
            self._failed = Stopped(asked or cause.exit, begun=self.has_begun())
        elif cause.exit is not Exit.CRASHED or asked is not None:
            self._failed = RanksFailed(f"{cause.text} {where}" if cause.rank else cause.text.removeprefix("rank 0: "), cause.exit)
        elif self._in_vain > STARTS_IN_VAIN:
            vain = f"started again {STARTS_IN_VAIN} times without a new step, so it stops here"
            self._failed = RanksFailed(f"{cause.text}; {vain} {where}", cause.exit)
        else:
            self._watched.say(f"{cause.text}; all ranks start again from the last checkpoint {where}")
            return
        self._remaining_restarts = 0

    def _first_cause(self, group: WorkerGroup, failures: Mapping[int, Any]) -> Cause:
        codes = {rank: int(failure.exitcode) for rank, failure in failures.items()}
        told = [
            Cause(found[0], f"rank {signs.rank}: {found[1]}", signs.rank, codes.get(signs.rank, Exit.CRASHED))
            for signs in self._signs(group)
            if (found := signs.failure()) is not None
        ]
        killed = [
            Cause(when - NEARLY_AT_ONCE, self._of_the_killed(rank, code), rank, code)
            for rank, (when, code) in self._ended.items()
            if code < 0
        ]
        ended = [
            Cause(failure.timestamp, f"rank {rank} ended with code {codes[rank]}", rank, codes[rank]) for rank, failure in failures.items()
        ]
        return min(told + killed or ended, key=lambda cause: cause.time)

    def _of_the_killed(self, rank: int, code: int) -> str:
        if rank in self._frozen:
            return f"rank {rank} gave no sign of life for {self._frozen[rank]:.0f} s"
        return f"rank {rank} was ended by {signal.Signals(-code).name}"

    def _look_for_frozen(self, group: WorkerGroup) -> None:
        """Have every rank write down what it does, and end the one that is frozen; the next look finds it failed."""
        for worker, signs in zip(group.workers, self._signs(group), strict=True):
            silent = signs.silent_for()
            if silent > SECONDS_OF_SILENCE and signs.rank not in self._frozen:
                self._frozen[signs.rank] = silent
                for each, its in zip(group.workers, self._signs(group), strict=True):
                    if its.beat.exists():  # before, the signal would end it
                        _send(each.id, signal.SIGUSR2)
                _send(worker.id, signal.SIGCONT)
                time.sleep(SECONDS_TO_TELL)
                _send(worker.id, signal.SIGKILL)

    def _signs(self, group: WorkerGroup) -> Iterator[Signs]:
        """Of the ranks on this machine."""
        return (Signs(self._watched.signs, worker.global_rank) for worker in group.workers)


def _send(pid: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, what)

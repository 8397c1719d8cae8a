"""An agent that tells a run that gets on from one that does not, and says what went wrong first."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError, RendezvousTimeoutError

from zephyr_kit import ZkitError
from zephyr_kit.exits import Exit
from zephyr_kit.heartbeat import Listener, Signs
from zephyr_kit.launched import START
from zephyr_kit.stopping import SIGNALS, Stop, Stopped, signal_of
from zkit_launchers.parting import Machines, RanksFailed

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
        """Of this code."""
        return exit_of(self.code)


@dataclass
class Starts:
    """How far they have come, and how many of the last ones came no further: in the stage where they are, if it is another."""

    step: int = 0
    stage: str = ""
    in_vain: int = 0

    def came_to(self, step: int, stage: str) -> None:
        """Count one that has failed."""
        if step > (self.step if stage == self.stage else 0):
            self.step, self.stage, self.in_vain = step, stage, 0
        else:
            self.in_vain += 1


class Guard(LocalElasticAgent):
    """torch's agent on one machine."""

    def __init__(self, spec: WorkerSpec, logs: LogsSpecs, watched: Watched, stop: Stop) -> None:
        super().__init__(spec, logs)
        self._watched, self._stop, self._meeting = watched, stop, spec.rdzv_handler
        self._starts = Starts()
        self._listener = Listener()
        self._frozen: dict[int, float] = {}
        self._ended: dict[int, tuple[float, int]] = {}
        self._failed: RanksFailed | Stopped | None = None
        self._is_meeting = False
        self._machines: Machines | None = None
        self._until: float | None = None
        """By when ranks that were asked to stop must have ended."""

    def watch(self) -> None:
        """Run until all has ended, here or on another machine; raise what has ended it for good."""
        try:
            self.run()
        except (RendezvousError, DistError) as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            self._machines = None  # there is nobody left to be told
            lost = "the machine where all meet has ended, or can no longer be reached"
            raise ZkitError(f"--rendezvous: {lost}: {reason} {self._logs_of_others}") from error
        finally:
            self._part()
        if self._failed is not None:
            raise self._failed

    def _part(self) -> None:
        """Leave with the other machines; while this one is not among those at work, they may go on without it."""
        with suppress(RendezvousError, DistError):
            if self._machines is None:
                return
            if not self._is_meeting:
                if self._failed is not None:
                    self._machines.tell(self._failed)
                self._meeting.shutdown()
            if self._meeting.is_closed():
                self._machines.part()

    def has_begun(self) -> bool:
        """Whether a step was taken, or the ranks of this machine had come so far that each has told why it ended."""
        told = [signs.failure() for signs in self._signs(self._worker_group)]
        return self._starts.step > 0 or (bool(told) and None not in told)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self._is_meeting = True
        try:
            with self._stop.at_once():
                super()._rendezvous(worker_group)
        except RendezvousTimeoutError as error:
            raise ZkitError("the other machines have not come: start the same command on each of them") from error
        except RendezvousClosedError as error:
            raise self._ended_elsewhere() from error
        os.environ[START] = self._name_of_start(worker_group)
        self._is_meeting, self._machines = False, Machines(worker_group.store, worker_group.group_world_size)  # type: ignore[arg-type]  # both are known now

    def _name_of_start(self, group: Any) -> str:
        """The same for the ranks of all machines, whose agents do not count starts alike; torch keeps one store for all of them."""
        if group.group_rank == 0:
            group.store.set(START, uuid.uuid4().hex)
        return str(group.store.get(START).decode())

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._listener = Listener()
        self._frozen.clear()
        self._ended.clear()
        for signs in self._signs(worker_group):
            signs.clear()
        pids: dict[int, Any] = super()._start_workers(worker_group)
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._look_for_ended(worker_group)
        asked = self._asked()
        if asked is not None:
            self._pass_on(asked, worker_group)
        result = RunResult(WorkerState.HEALTHY) if self._are_leaving() else super()._monitor_workers(worker_group)
        if result.state is WorkerState.HEALTHY:
            self._look_for_frozen(worker_group)
        elif result.is_failed():
            self._judge(worker_group, result.failures, asked)
        return result

    def _asked(self) -> Exit | None:
        """To stop, here or on another machine; if that has ended the run for another reason, it is raised."""
        asked = self._stop.requested()
        if self._meeting.is_closed():
            ended = self._ended_elsewhere()
            if ended.exit not in SIGNALS.values():
                raise ended
            asked = asked or ended.exit
        return asked

    def _ended_elsewhere(self) -> RanksFailed:
        text, code = (self._machines and self._machines.told()) or (f"it does not say why {self._logs_of_others}", Exit.CANNOT)
        return RanksFailed(f"another machine has ended the run: {text}", code)

    @property
    def _logs_of_others(self) -> str:
        return f"(logs in {self._watched.logs.parent})"

    def _pass_on(self, asked: Exit, group: WorkerGroup) -> None:
        """Ask the ranks, once; those that have not ended in time are ended. Until then they are watched as ever."""
        assert self._pcontext is not None
        if self._until is None:
            self._until = time.monotonic() + SECONDS_TO_SAVE
            listen = all(signs.beat.exists() for signs in self._signs(group))
            for handler in self._alive():
                handler.close(signal_of(asked) if listen else signal.SIGTERM)
        elif time.monotonic() > self._until:
            self._pcontext.close(signal.SIGTERM)

    def _are_leaving(self) -> bool:
        """Whether all ends so far are what was asked for: torch would give the rest, who may still be saving, little time."""
        as_asked = all(exit_of(code) in SIGNALS.values() for _, code in self._ended.values())
        return self._until is not None and as_asked and bool(self._alive())

    def _look_for_ended(self, group: WorkerGroup) -> None:
        """Before the others are ended; who waits for a word of one would otherwise wait until torch's patience with it ends."""
        for rank, handler in self._handlers().items():
            if code := handler.proc.poll():
                self._ended.setdefault(group.workers[rank].global_rank, (time.time(), code))
                self._break()

    def _handlers(self) -> dict[int, SubprocessHandler]:
        assert isinstance(self._pcontext, SubprocessContext)
        return self._pcontext.subprocess_handlers

    def _alive(self) -> list[SubprocessHandler]:
        return [handler for handler in self._handlers().values() if handler.proc.poll() is None]

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        self._break()  # what the ranks here wait for may have been on another machine
        super()._shutdown(death_sig, timeout)

    def _break(self) -> None:
        Signs(self._watched.signs, 0).broken.touch()

    def _judge(self, group: WorkerGroup, failures: Mapping[int, Any], asked: Exit | None) -> None:
        """Whether to start again."""
        cause = self._first_cause(group, failures)
        self._starts.came_to(*max(signs.step() for signs in self._signs(group)))
        where = f"(logs in {self._watched.logs})"
        if cause.exit in SIGNALS.values():
            self._failed = Stopped(asked or cause.exit, begun=self.has_begun())
        elif cause.exit is not Exit.CRASHED or asked is not None:
            alone = cause.rank == 0 and group.group_world_size == 1
            self._failed = RanksFailed(cause.text.removeprefix("rank 0: ") if alone else f"{cause.text} {where}", cause.exit)
        elif self._starts.in_vain > STARTS_IN_VAIN:
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
        alive = {handler.proc.pid for handler in self._alive()}
        ranks = [(worker, signs) for worker, signs in zip(group.workers, self._signs(group), strict=True) if worker.id in alive]
        for worker, signs in ranks:
            silent = self._listener.silent_for(signs)
            if silent > SECONDS_OF_SILENCE and signs.rank not in self._frozen:
                self._frozen[signs.rank] = silent
                for each, its in ranks:
                    if its.beat.exists():  # before, the signal would end it
                        _send(each.id, signal.SIGUSR2)
                _send(worker.id, signal.SIGCONT)
                time.sleep(SECONDS_TO_TELL)
                _send(worker.id, signal.SIGKILL)

    def _signs(self, group: WorkerGroup) -> Iterator[Signs]:
        """Of the ranks on this machine."""
        return (Signs(self._watched.signs, worker.global_rank) for worker in group.workers)


def exit_of(code: int) -> Exit:
    """What a process has chosen, or was asked for before it listened: starting it again would end in the same way. Or a crash."""
    known = {int(each): each for each in Exit} | {-number: each for number, each in SIGNALS.items()}
    return known.get(code, Exit.CRASHED)


def _send(pid: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, what)

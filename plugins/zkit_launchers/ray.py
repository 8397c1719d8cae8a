"""A Ray cluster: on each of its machines `zkit run` is started, as one would by hand; the machines meet on the first of them."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from zephyr_kit import ZkitError
from zephyr_kit.exits import Exit
from zephyr_kit.protocols import Job
from zephyr_kit.stopping import SIGNALS, Stop, Stopped, signal_of
from zkit_launchers.machine import Ended, Machine

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_FIND = 5.0
"""Free machines, before the user is told that they are waited for."""
SECONDS_TO_LEAVE = 60.0
"""For the other machines, when the first has ended for good."""


@dataclass(frozen=True)
class Ray:
    """Actors of Ray's, one on each machine. The run's folder, and the cache, are on a disk that all machines share."""

    address: str | None = None
    """Of the cluster, as `ray.init` takes it; the one that `ray start` has started here, or a new one, unless given."""
    cpus_per_device: Annotated[int, Gt(0)] = 1
    max_failures: Annotated[int, Ge(0)] = 3
    """How often all start anew when a machine was lost; ranks that fail are started again on their machines."""
    port: Annotated[int, Gt(0)] = 29_500
    """Where the machines meet, on the first of them."""

    def problems(self, job: Job) -> Sequence[str]:
        """See `protocols.Launcher`."""
        if importlib.util.find_spec("ray") is None:
            return ["Ray is not installed: pip install 'zephyr-kit[ray]'"]
        meets = ["--rendezvous: under Ray the machines meet on the first of them"] if job.rendezvous is not None else []
        varies = ["--nodes: Ray holds as many machines as are asked for; give one number"] if job.fewest_nodes < job.nodes else []
        return [*meets, *varies]

    def launch(self, job: Job, say: Callable[[str], None]) -> int:
        """See `protocols.Launcher`."""
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine untold
        try:
            cluster = ray.init(address=self.address, include_dashboard=False, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise ZkitError(f"no Ray cluster answers: {error}") from error
        stop = Stop()
        with cluster, stop.listening(), stop.later("all machines have stopped"):
            _refuse_failure(self._ended(job, stop, say))
        return 0

    def arguments(self, job: Job, first: str) -> tuple[str, ...]:
        """Of `zkit` on a machine that knows the first one as `first`."""
        meeting = ("--nodes", str(job.nodes), "--rendezvous", f"{first}:{self.port}") if job.nodes > 1 else ()
        return (*job.arguments, "--devices", str(job.devices), *meeting)

    def environment(self) -> dict[str, str]:
        """What is set here for `zkit`, and the threads of a rank, which Ray would set to the processors of all."""
        own = {name: value for name, value in os.environ.items() if name.startswith("ZKIT_")}
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.cpus_per_device)), **own}

    def _ended(self, job: Job, stop: Stop, say: Callable[[str], None]) -> Ended:
        """The first failure of any machine, after so many starts anew as there may be."""
        ended = self._start(job, stop, say)
        for _ in range(self.max_failures):
            if ended.exit is not None or stop.requested() is not None:
                break
            say(f"{ended.told}; all machines start again from the last checkpoint")
            ended = self._start(job, stop, say)
        return ended

    def _start(self, job: Job, stop: Stop, say: Callable[[str], None]) -> Ended:
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        cpus, gpus = self.cpus_per_device * job.devices, job.devices if job.device == "cuda" else 0
        group = placement_group([{"CPU": cpus, **({"GPU": gpus} if gpus else {})}] * job.nodes, strategy="STRICT_SPREAD")
        try:
            with stop.at_once():
                if not group.wait(SECONDS_TO_FIND):
                    say(f"waiting for machines of the Ray cluster: {job.nodes} with {cpus} free CPUs{f' and {gpus} GPUs' if gpus else ''}")
                while not group.wait(SECONDS_BETWEEN_LOOKS):
                    pass
            actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=2)(Machine)
            places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number) for number in range(job.nodes)]
            machines = [actor.options(scheduling_strategy=place).remote(number) for number, place in enumerate(places)]
            # torch knows the first machine by its own name alone, which others need not know.
            hosts = ["localhost", *[ray.get(machines[0].address.remote())] * (job.nodes - 1)]
            runs = {
                machine.run.remote(self.arguments(job, host), self.environment(), Path.cwd()): machine
                for machine, host in zip(machines, hosts, strict=True)
            }
            return _watched(runs, stop)
        finally:
            remove_placement_group(group)  # with the actors in it


def _watched(runs: Mapping[Any, Any], stop: Stop) -> Ended:
    """The first that fails, once all have ended; what stops the command is passed on to all, and a failure ends all."""
    import ray

    first, pending, until, passed_on = Ended(0, ""), list(runs), math.inf, False
    while pending:
        asked = stop.requested()
        if asked is not None and not passed_on:
            passed_on = True
            _send(signal_of(asked), pending, runs)
        done, pending = ray.wait(pending, timeout=SECONDS_BETWEEN_LOOKS)
        failed = [ended for run in done if (ended := _found(run)).code]
        if failed and not first.code:
            first, until = failed[0], time.monotonic() + SECONDS_TO_LEAVE
            _send(signal.SIGTERM, pending, runs)
        if time.monotonic() > until:
            until = math.inf
            _send(signal.SIGKILL, pending, runs)
    return first


def _send(number: int, pending: Sequence[Any], runs: Mapping[Any, Any]) -> None:
    for run in pending:
        runs[run].send.remote(int(number))


def _found(run: Any) -> Ended:
    import ray
    from ray.exceptions import RayActorError

    try:
        ended: Ended = ray.get(run)
    except RayActorError as error:
        return Ended(-signal.SIGKILL, f"a machine of the Ray cluster was lost: {str(error).partition(chr(10))[0]}")
    return ended


def _refuse_failure(ended: Ended) -> None:
    """Raise what has ended the machines for good."""
    if not ended.code:
        return
    from zkit_launchers.parting import RanksFailed

    code = ended.exit or Exit.CRASHED
    if code in SIGNALS.values():
        raise Stopped(code, begun=ended.told == code.meaning)
    raise RanksFailed(ended.told, code)

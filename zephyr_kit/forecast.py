"""What a stage will take on a device, before anything is loaded: memory by part, and time; and whether it fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property

from zephyr_kit import ZkitError
from zephyr_kit.batch import Tree
from zephyr_kit.corpus import Corpus
from zephyr_kit.devices import Device, measured_rate, resident
from zephyr_kit.footprint import ACTIVATIONS, HEAD
from zephyr_kit.preset import Preset, Stage
from zephyr_kit.pretended import pretended_mesh, pretended_team
from zephyr_kit.protocols import Start
from zephyr_kit.rehearsal import Parts, PlannedStep, Rehearsal, rehearse
from zephyr_kit.stages import CPU_TOKENS_PER_BATCH, TrainStage
from zephyr_kit.workload import Rows, Workload, made_up, most_in_a_step
from zephyr_kit.world import World

LADDER = (2048, 4096, 8192, 16_384, 32_768, 65_536)
"""What `tokens_per_batch` is chosen from."""
ROOM = 0.9
"""The share of a device's memory that a chosen `tokens_per_batch` may come to."""
HEAP_GAPS = 0.45
"""What a CPU's heap holds in gaps beside activations and head, as a share of them: 0.3 to 0.74 were measured, and 0.04 once."""
TELLING = 5e-6
"""Seconds that a host takes to have a GPU begin an operation: the usual figure, not measured."""
LIBRARIES, MAPPED, CHECKPOINT, GAPS = "libraries", "weight files", "checkpoint", "gaps of the heap"


@dataclass(frozen=True)
class Forecast:
    """What a stage will take on a device."""

    stage: str
    device: Device
    tokens_per_batch: int
    chosen: bool
    """Whether the plan has chosen that."""
    workload: Workload | None
    """None where the data is not at hand."""
    rehearsal: Rehearsal
    libraries: int
    """Bytes that are taken before there is a model."""
    checkpoint_every: int = 1
    num_devices: int = 1
    """All that share the steps."""

    @property
    def sharded(self) -> bool:
        """Whether devices share the weights."""
        return self.device.count > 1

    @property
    def goes_on_beside_a_checkpoint(self) -> bool:
        """Whether there are steps while the copy of an earlier one is written."""
        return self.workload is None or self.workload.num_steps > self.checkpoint_every

    @cached_property
    def parts(self) -> dict[str, int]:
        """Bytes by part at the highest moment, on each device."""
        moments = [self.rehearsal.training, self.rehearsal.reference_pass]
        return max((self._on_device(parts) for parts in moments), key=lambda parts: sum(parts.values()))

    @property
    def peak(self) -> int:
        """Bytes at the highest moment, on each device."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the device holds it."""
        return self.peak <= self.device.memory

    @property
    def room(self) -> float:
        """What the peak may be for it to be chosen: whatever this process holds just now, so that the choice is the same each time."""
        return ROOM * self.device.memory + self.libraries - self.device.libraries

    @cached_property
    def rate(self) -> float | None:
        """Operations a second of all devices, efficiency included; None for a card that is not in the table."""
        if self.device.kind == "cpu":  # the host's, however many processes share it
            return measured_rate(self.rehearsal.shape.matrix, self.rehearsal.shape.dtype)
        return None if self.device.tabled_rate is None else self.num_devices * self.device.tabled_rate

    @property
    def batch_seconds(self) -> float | None:
        """Of a batch as large as the rehearsed one: its arithmetic, or on a GPU what it takes to tell it all, if that is more."""
        if self.rate is None:
            return None
        telling = TELLING * self.rehearsal.operations / self.num_devices if self.device.kind == "cuda" else 0.0
        return max(self.rehearsal.flops / self.rate, telling)

    @property
    def seconds(self) -> float | None:
        """From the first score of the reference to the last step; None if the amount of data, or the rate, is not known."""
        if self.workload is None or self.rate is None or self.batch_seconds is None:
            return None
        here = self.rehearsal
        a_batch = self.workload.epochs * self.batch_seconds + here.reference_flops / self.rate
        return self.workload.tokens_per_epoch / here.num_tokens * a_batch

    def _on_device(self, parts: Parts) -> dict[str, int]:
        if not parts:
            return {}
        own = {name: size for name, size in parts.items() if size}
        return {LIBRARIES: self.libraries, **own, **(self._on_a_cpu(parts) if self.device.kind == "cpu" else {})}

    def _on_a_cpu(self, parts: Parts) -> dict[str, int]:
        """What a host's memory holds besides."""
        gaps = int(HEAP_GAPS * sum(parts.get(name, 0) for name in (ACTIVATIONS, HEAD)))
        copied = self.rehearsal.own_state if self.goes_on_beside_a_checkpoint else 0
        return {name: size for name, size in ((MAPPED, self.rehearsal.mapped), (CHECKPOINT, copied), (GAPS, gaps)) if size}


@dataclass(frozen=True)
class Outlook:
    """A stage, and where it would run."""

    stage: Stage
    task: TrainStage
    start: Start
    device: Device
    seed: int
    corpus: Corpus | None = None
    libraries: int | None = None
    """Bytes that are taken before there is a model; unless given, what this process has taken when it has rehearsed."""
    num_in_team: int = 1
    """Devices that compute a batch together."""
    num_devices: int = 1
    """All that share the steps, those with a copy of the model too."""

    def forecast(self) -> Forecast:
        """Raises whatever a rehearsal raises."""
        given = self.task.train.tokens_per_batch
        if given is not None:
            return self.with_batches_of(given)
        return highest(self.rungs(), self.with_batches_of, lambda forecast: forecast.room)

    def rungs(self) -> list[int]:
        """From the lowest to the first that holds a whole step."""
        rungs = [rung for rung in LADDER if self.device.kind != "cpu" or rung <= CPU_TOKENS_PER_BATCH]
        step = most_in_a_step(self.task) if self._rows is None else self._rows.fullest_step
        enough = sum(rung < step for rung in rungs)
        return rungs[: enough + 1]

    def with_batches_of(self, tokens: int) -> Forecast:
        """With this `tokens_per_batch`."""
        trees, workload, accumulates = self._batch(tokens)
        train = self.task.train
        planned = PlannedStep(
            self.stage.model,
            self.start,
            self.task.objective,
            train.optimizer,
            trees,
            share_prompts=train.share_prompts,
            cached_reference=self.task.reference != "live",
            accumulates=accumulates,
            clip=train.clip,
        )
        rehearsal = self._rehearsed(planned)
        libraries = self.device.libraries if self.device.kind != "cpu" else self.libraries or resident()
        chosen = train.tokens_per_batch is None
        return Forecast(
            self.stage.name, self.device, tokens, chosen, workload, rehearsal, libraries, train.checkpoint_every, self._num_devices
        )

    def _rehearsed(self, planned: PlannedStep) -> Rehearsal:
        """By one device of those that share the model."""
        # Of the machines that hold copies, two tell what more of them would.
        machines = 2 if self.task.train.sharding == "hybrid" else None
        with ExitStack() as stack:
            mesh = stack.enter_context(pretended_mesh(self.device.count, machines=machines)) if self.device.count > 1 else None
            team = stack.enter_context(pretended_team(self.num_in_team)) if self.num_in_team > 1 else None
            return rehearse(planned, mesh, team)

    def changed(self, **task: object) -> Outlook:
        """With other keys of the stage."""
        return replace(self, task=replace(self.task, **task))  # type: ignore[arg-type]

    @property
    def _num_devices(self) -> int:
        return max(self.num_devices, self.device.count)

    @property
    def _num_teams(self) -> int:
        return self._num_devices // self.num_in_team

    @cached_property
    def _rows(self) -> Rows | None:
        return None if self.corpus is None else Rows(self.corpus, self.task.train, self.seed)

    def _batch(self, tokens: int) -> tuple[tuple[Tree, ...], Workload | None, bool]:
        """The largest batch, the figures, and whether a step has several for one device."""
        if self._rows is None:
            return made_up(self.task, tokens), None, tokens < most_in_a_step(self.task)
        packs = self._rows.packs(tokens, self._num_teams)
        return self._rows.largest(packs), self._rows.workload(packs, tokens), any(len(step) > self._num_teams for step in packs)


def foretell(outlook: Outlook) -> tuple[Forecast | None, str]:
    """The forecast, or why there is none: that must not stop a run that works. Raises what the user can mend, with the stage's name."""
    try:
        return outlook.forecast(), ""
    except ZkitError as error:
        raise ZkitError(f"[stages.{outlook.stage.name}] {error}") from error
    except Exception as error:  # whatever a model's code raises that cannot go without data
        return None, f"its memory cannot be foreseen ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"


def over_devices(outlook: Outlook, world: World) -> list[Outlook]:
    """The outlooks of the ways to train on these devices that the stage allows, the one with the fewest messages first.

    Raises what `World.in_teams` does where they cannot be divided as the stage asks.
    """
    shares = {"replicated": [1], "sharded": [world.size], "hybrid": [world.local_size], "auto": [1, world.size]}
    train = outlook.task.train
    outlook = replace(outlook, num_in_team=world.in_teams(train.context_parallel).num_in_team, num_devices=world.size)
    return [replace(outlook, device=replace(outlook.device, count=count)) for count in dict.fromkeys(shares[train.sharding])]


def foretell_first_that_fits(ways: Sequence[Outlook]) -> tuple[Outlook, Forecast | None, str]:
    """The first of these ways that fits, else the last, with what `foretell` says of it."""
    for way in ways:
        forecast, reason = foretell(way)
        if forecast is None or forecast.fits:
            break
    return way, forecast, reason


def skeleton_start(preset: Preset, stage: Stage) -> Start:
    """What the stage starts from, none of which need be there."""
    before = itertools.takewhile(lambda each: each.name != stage.name, preset.stages)
    earlier = tuple((each.model, each.changed) for each in before if isinstance(each.task, TrainStage))
    return Start(None, stage.changed, preset.seed, earlier)


def with_capacity(task: TrainStage, forecast: Forecast | None) -> TrainStage:
    """The stage with the batches, and the sharding, that were chosen for it."""
    if forecast is None:
        return task
    sharding = task.train.sharding
    if sharding == "auto":
        sharding = "sharded" if forecast.sharded else "replicated"
    return replace(task, train=replace(task.train, tokens_per_batch=forecast.tokens_per_batch, sharding=sharding))


def highest(rungs: list[int], forecast: Callable[[int], Forecast], limit: Callable[[Forecast], float]) -> Forecast:
    """The forecast of the highest rung whose peak is within the limit, of the lowest if none is.

    Large batches take long to rehearse, and memory grows in proportion to tokens: two small ones tell where to look.
    """
    found = forecast(rungs[0])
    if len(rungs) == 1 or found.peak > limit(found):
        return found
    second = forecast(rungs[1])
    tokens = max(1, second.rehearsal.num_tokens - found.rehearsal.num_tokens)
    slope = max(second.peak - found.peak, 1) / tokens
    reach = found.rehearsal.num_tokens + (limit(found) - found.peak) / slope
    for rung in reversed([rung for rung in rungs[1:] if rung <= reach]):
        higher = second if rung == rungs[1] else forecast(rung)
        if higher.peak <= limit(higher):
            return higher
    return found

"""A training step rehearsed on tensors without data: the code that will run, its memory and its arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from zephyr_kit.batch import Batch, Tree, lay_out
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import StepWork, Work
from zephyr_kit.footprint import ACTIVATIONS, GRADIENTS, MASTERS, OPTIMIZER, REFERENCE, WEIGHTS, Footprint, nbytes
from zephyr_kit.protocols import Backend, Objective, OptimizerFactory, Skeleton, Start, num_units, survey_of, updates_bfloat16

Parts = Mapping[str, int]
"""Bytes of each part."""


@dataclass(frozen=True)
class PlannedStep:
    """What is rehearsed."""

    backend: Backend
    start: Start
    objective: Objective
    optimizer: OptimizerFactory
    trees: tuple[Tree, ...]
    """The largest batch."""
    share_prompts: bool = True
    cached_reference: bool = True
    accumulates: bool = True
    """Whether steps have several batches, so that gradients are there when the last one comes."""
    clip: float = 1.0


@dataclass(frozen=True)
class Shape:
    """What a plan wants to know of the model."""

    num_parameters: int
    num_trained: int
    matrix: tuple[int, int]
    """Shape of the largest matrix in a block."""
    dtype: torch.dtype


@dataclass(frozen=True)
class Rehearsal:
    """What came of it."""

    shape: Shape
    training: Parts
    """At the highest moment of a step."""
    reference_pass: Parts
    """At the highest moment of scoring the reference, once, before the first step; empty if there is no such pass."""
    state: int
    """Bytes of a checkpoint, all devices' parts of it together."""
    own_state: int
    """Bytes of this device's part."""
    num_tokens: int
    flops: int
    """Of the batch: forward and backward, and a live reference."""
    operations: int
    """That a device is told to do for the batch, one after another."""
    reference_flops: int
    """Of the batch, in the pass of the reference, and in that of its mismatched pairs where the objective surveys these."""
    mapped: int
    """See `Skeleton`."""
    remark: str
    messages: Mapping[str, tuple[int, int]]
    """Between the devices of a mesh, by kind: how many in the step, and the bytes of the whole of what they gather or reduce."""


def rehearse(planned: PlannedStep, mesh: DeviceMesh | None = None, team: ProcessGroup | None = None) -> Rehearsal:
    """Run one step, of one of the devices of a mesh, and of a team, if given; raises whatever code raises that cannot go without data.

    Both are of a process group that sends nothing, torch's "fake" one; a team computes its batches together.
    """
    # Forked outside the mode, for the state of the random numbers is real.
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            skeleton = planned.backend.skeleton(planned.start)
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            batch = lay_out(planned.trees, share_prompts=planned.share_prompts).mapped(fake.from_tensor)
            with Footprint(vocabulary=skeleton.vocabulary) as footprint:
                with footprint.counted_as(WEIGHTS):
                    _give_storage(skeleton.policy.module)
                    shape = _shape(skeleton.policy.module)
                    if team is not None:
                        skeleton.policy.share_rows(team)
                    if mesh is not None:
                        skeleton.policy.shard(mesh)
                with footprint.resizes_seen():
                    return _Rehearsing(planned, skeleton, footprint, batch, shape, 1 if team is None else team.size()).run()


@dataclass(frozen=True)
class _Rehearsing:
    """A stage of training in one batch."""

    planned: PlannedStep
    skeleton: Skeleton
    footprint: Footprint
    batch: Batch
    shape: Shape
    num_sharing: int
    """Devices that compute the batch together."""

    def run(self) -> Rehearsal:
        reference_pass, reference_flops, scores = self._reference()
        with self.footprint.counted_as(MASTERS):
            trainer = self._trainer()
        self._take_up(trainer)
        self.footprint.begin()
        units = num_units(self.planned.objective, self.batch)
        work = [Work(self.batch, scores)]
        trainer.step(StepWork(work, units, len(self.batch.tokens_T), len(self.batch.target_M), work, units))
        return Rehearsal(
            self.shape,
            dict(self.footprint.peak),
            reference_pass,
            sum(tensor.numel() * tensor.element_size() for tensor in _state(trainer)),
            sum(map(nbytes, _state(trainer))),
            len(self.batch.tokens_T),
            self.num_sharing * self.footprint.flops,
            self.footprint.operations,
            self.num_sharing * reference_flops,
            self.skeleton.mapped,
            self.skeleton.remark,
            {name: (count, self.footprint.message_bytes[name]) for name, count in self.footprint.messages.items()},
        )

    def _reference(self) -> tuple[Parts, int, Tensor | None]:
        if not self.planned.objective.needs_reference:
            return {}, 0, None
        if not self.planned.cached_reference:
            # A copy of a module asks its tensors where their data is, and is told off for it.
            with self.footprint.counted_as(REFERENCE), warnings.catch_warnings(action="ignore", category=UserWarning):
                self.skeleton.policy.keep_reference()
            return {}, 0, None
        self.footprint.begin()
        self.skeleton.policy.module.eval()
        with torch.no_grad():
            scores = self.skeleton.policy.score(self.batch)
        survey = survey_of(self.planned.objective)
        passes = 2 if survey is not None and survey.surveys == "mismatched" else 1
        return dict(self.footprint.peak), passes * self.footprint.flops, scores

    def _trainer(self) -> Trainer:
        factory = self.planned.optimizer
        return Trainer(
            self.skeleton.policy,
            self.planned.objective,
            optimizer=lambda parameters: factory.build(parameters, learning_rate=1e-3),
            learning_rate=lambda _: 1e-3,
            seed=0,
            clip=self.planned.clip,
            updates_bfloat16=updates_bfloat16(factory),
        )

    def _take_up(self, trainer: Trainer) -> None:
        """As it is after some steps: with the optimizer's state, and the gradients of the batch before."""
        masters = trainer.masters
        trainer.skips_on_device = True  # what has no data cannot be asked whether to step
        with self.footprint.counted_as(GRADIENTS):
            for parameter in trainer.parameters:
                parameter.grad = torch.empty_like(parameter, dtype=parameter.grad_dtype)
        with self.footprint.counted_as(OPTIMIZER):
            trainer.optimizer.step()
        if not self.planned.accumulates:
            trainer.optimizer.zero_grad()
        for name, short in masters.model.items():
            short.register_post_accumulate_grad_hook(_Mover(self.footprint, masters.optimized[name]))  # type: ignore[no-untyped-call]
        trainer.optimizer.register_step_pre_hook(lambda *_: _switch(self.footprint, OPTIMIZER))
        trainer.optimizer.register_step_post_hook(lambda *_: _switch(self.footprint, ACTIVATIONS))


@dataclass(frozen=True)
class _Mover:
    """Counts a gradient as one as soon as it is there."""

    footprint: Footprint
    full: nn.Parameter

    def __call__(self, short: Tensor) -> None:
        for parameter in (short, self.full):
            if parameter.grad is not None:
                self.footprint.move(parameter.grad, GRADIENTS)


def _switch(footprint: Footprint, part: str) -> None:
    footprint.switch(part)


def _give_storage(module: nn.Module) -> None:
    """Put tensors of a CPU, still without data, for those of no device; what was one stays one."""
    found: dict[int, Tensor] = {}
    for each in module.modules():
        for name, old in each._parameters.items():
            if old is not None:
                fresh = found.setdefault(id(old), nn.Parameter(torch.empty_like(old, device="cpu"), requires_grad=old.requires_grad))
                each._parameters[name] = cast("nn.Parameter", fresh)
        for name, kept in each._buffers.items():
            if kept is not None:
                each._buffers[name] = found.setdefault(id(kept), torch.empty_like(kept, device="cpu"))


def _state(trainer: Trainer) -> list[Tensor]:
    kept = [value for state in trainer.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*trainer.parameters, *kept]


def _shape(module: nn.Module) -> Shape:
    blocks = [child for each in module.modules() if isinstance(each, nn.ModuleList) for child in each]
    largest_block = max(blocks, key=_size, default=module)
    matrices = [_matrix(layer) for layer in largest_block.modules() if isinstance(layer, nn.Linear)]
    parameters = list(module.parameters())
    return Shape(
        _num_parameters(module),
        sum(p.numel() for p in parameters if p.requires_grad),
        max(matrices, key=lambda pair: pair[0] * pair[1], default=(1, 1)),
        next((p.dtype for p in parameters if p.dtype.is_floating_point), torch.float32),
    )


def _size(module: nn.Module) -> int:
    return sum(map(nbytes, module.parameters()))


def _matrix(layer: nn.Linear) -> tuple[int, int]:
    return layer.out_features, layer.in_features


def _num_parameters(module: nn.Module) -> int:
    """A packed linear layer's as they would be unpacked."""
    sizes: dict[int, int] = {}
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            unpacked = _matrix(layer) if isinstance(layer, nn.Linear) and name == "weight" else (1, parameter.numel())
            sizes[id(parameter)] = unpacked[0] * unpacked[1]
    return sum(sizes.values())

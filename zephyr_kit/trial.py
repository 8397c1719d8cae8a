"""A few steps of a stage, on its own data and model, to be taken in one way and in others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from zephyr_kit import ZkitError, raised
from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.comparison import Comparison
from zephyr_kit.feed import Work
from zephyr_kit.gathered import are_there
from zephyr_kit.observe import Narrator
from zephyr_kit.offset import Offset, far_enough
from zephyr_kit.plan import Plan
from zephyr_kit.preset import Preset, Stage, bound
from zephyr_kit.protocols import Attention, Policy, Scores, Start
from zephyr_kit.runs import RunFolder
from zephyr_kit.spawned import spawn
from zephyr_kit.stage_data import length_problem, prepare_part
from zephyr_kit.stages import TrainStage
from zephyr_kit.trees import Trees
from zephyr_kit.ways import Record, Way, take
from zephyr_kit.world import World

Dtype = Literal["float32", "float64"]
ROWS_FOR_EACH = 16
"""So many rows are read for each example that is needed: some are bad, or too long."""
ROUNDING = 4
"""So many roundings of the loss may be left of a gradient that is zero."""


@dataclass(frozen=True)
class Size:
    """How many steps, and how many examples in each."""

    steps: int = 3
    examples: int = 4


@dataclass(frozen=True)
class Trial:
    """Steps, and what they are taken with."""

    stage: Stage
    task: TrainStage
    start: Start
    device: torch.device
    examples: Trees
    steps: tuple[tuple[int, ...], ...]
    offset: Offset = Offset()
    """How far from the reference they start."""

    def record(self, way: Way, world: World | None = None) -> Record:
        """What the steps lead to in this way, as one of the ranks of a world."""
        policy, _ = self.policy()
        task, device = self.task, self.device
        given = policy, task.objective, self.examples, self.steps, way
        return take(*given, device=device, max_length=task.max_length, world=world, offset=self.offset)

    def records(self, ways: Sequence[Way], ranks: int) -> list[Record | str]:
        """What they lead to in each way on so many ranks; or why not, in words."""
        with tempfile.TemporaryDirectory() as folder:
            found: list[Any] = spawn(_on_rank, ranks, Path(folder), self, ways)[0]
        return [each if isinstance(each, str) else Record(**each) for each in found]

    def by(self, kernel: Attention) -> Trial:
        """The same steps by another attention."""
        model: Any = self.stage.model
        return replace(self, stage=replace(self.stage, model=replace(model, attention=kernel)))

    def policy(self) -> tuple[Policy, dict[str, float]]:
        """The model as the stage finds it, without dropout, and what dropout that was, by module."""
        policy = self.stage.model.load(self.device, start=self.start, train=True)
        return policy, dict(_switch_off_dropout(policy.module))

    def away(self, policy: Policy) -> Trial:
        """The same steps from where margins are not zero, if they are compared with a reference; the policy is moved there."""
        if not self.task.objective.needs_reference:
            return self
        policy.keep_reference()
        first = [self.examples[index] for index in self.steps[0]]
        return replace(self, offset=far_enough(policy, first, seed=self.start.seed, device=self.device))

    def teaches(self, policy: Policy) -> bool:
        """Whether any step has a gradient beyond what rounding leaves of zero, for a policy that is where they start."""
        return any(self._pull(policy, members) > ROUNDING for members in self.steps)

    def _pull(self, policy: Policy, members: Sequence[int]) -> float:
        """The largest derivative of a step's loss by a log-probability, in roundings of the loss."""
        batch = lay_out([self.examples[index] for index in members], share_prompts=False).to(self.device)
        with torch.no_grad():
            scores, reference = Comparison(policy, self.task.objective.needs_reference).scores(Work(batch))
        logp_M = scores.logp_M.requires_grad_()
        loss = self._loss(scores, reference)
        (pull_M,) = torch.autograd.grad(loss, logp_M)
        pull, rounding = pull_M.abs().max().item(), torch.finfo(pull_M.dtype).eps * abs(loss.item())
        return pull / rounding if rounding else float("inf") if pull else 0.0

    def _loss(self, scores: Scores, reference: Scores | None) -> torch.Tensor:
        objective, where = self.task.objective, f"stages.{self.stage.name}"
        try:
            loss = objective(scores, reference).loss
        except Exception as error:
            raise ZkitError(f"{where}: the objective raised {raised.told(error, objective)}") from error
        if loss.ndim:
            raise ZkitError(f"{where}: the loss has the shape {tuple(loss.shape)}: sum it up")
        if not loss.isfinite():
            raise ZkitError(f"{where}: the loss of its first examples is {loss.item()}, with which nothing can be compared")
        if not loss.requires_grad:
            raise ZkitError(f"{where}: the loss has lost its graph: there is no gradient to compare")
        return loss

    @property
    def shares_prompts(self) -> bool:
        """Whether the stage computes the prompt of several completions once."""
        return self.task.train.share_prompts and bool(getattr(self.stage.model, "shares_prompts", True))


def trial_of(preset: Preset, stage: Stage, run: RunFolder, device: torch.device, dtype: Dtype, size: Size, narrator: Narrator) -> Trial:
    """The first steps of a stage, with the rows, and from the model, that the run's folder has for it."""
    if size.examples < 2:
        raise ZkitError("a step of one example can be cut in one way only, so nothing is compared: --examples 2, or more")
    stage = _in_dtype(bound(stage, run.path), dtype)
    task = stage.task
    assert isinstance(task, TrainStage)
    if not are_there(task.data):
        raise ZkitError(f"stages.{stage.name}: its data has not been gathered yet; run the preset first, or certify another --stage")
    start = Start(_before(preset, stage, run), stage.changed, preset.seed)
    if problem := length_problem(stage, task, start):
        raise ZkitError(problem)
    most = ROWS_FOR_EACH * size.steps * size.examples
    few = tuple(replace(one, limit=min(one.limit or most, most)) for one in task.data)
    corpus = prepare_part(task, few, stage.model.tokenizer(start), narrator, f"data of {stage.name}")
    if len(corpus) < size.examples:
        found = f"of its first rows only {len(corpus)} can be trained on"
        raise ZkitError(f"stages.{stage.name}: {found}, and a step has {size.examples} of them (--examples)")
    plan = Plan(corpus.lengths, preset.seed, examples_per_step=size.examples, epochs=None, steps=size.steps)
    drawn = [index for number in range(size.steps) for index in plan.step(number)]
    steps = tuple(tuple(range(first, first + size.examples)) for first in range(0, len(drawn), size.examples))
    return Trial(stage, task, start, device, Trees([_copy(corpus[index]) for index in drawn]), steps)


def _in_dtype(stage: Stage, dtype: Dtype) -> Stage:
    """The stage with a model that computes in this type, if it can be told."""
    model: Any = stage.model
    if not any(field.name == "dtype" for field in fields(model)):
        if dtype == "float64":
            raise ZkitError(f"stages.{stage.name}: its model has no key `dtype`, so nothing can tell it to compute in float64")
        return stage
    try:
        return replace(stage, model=replace(model, dtype=dtype))
    except ValueError as error:
        raise ZkitError(f"stages.{stage.name}: its model cannot compute in {dtype}: {error}") from error


def _before(preset: Preset, stage: Stage, run: RunFolder) -> Path | None:
    """The model that the stage before has left, if it has been run."""
    names = [one.name for one in preset.stages]
    trained = [one.name for one in preset.stages[: names.index(stage.name)] if isinstance(one.task, TrainStage)]
    folder = run.stage(trained[-1]) if trained else None
    return folder.model if folder is not None and folder.done() is not None else None


def _copy(tree: Tree) -> Tree:
    """In memory of its own: a mapped file does not travel to another process."""
    completions, trained = tuple(ids.copy() for ids in tree.completions), tuple(flags.copy() for flags in tree.trained)
    return Tree(tree.prompt.copy(), completions, trained, tree.ratings)


def _on_rank(world: World, trial: Trial, ways: Sequence[Way]) -> list[dict[str, Any] | str]:
    """In plain values. What refuses, refuses on all ranks alike."""
    found: list[dict[str, Any] | str] = []
    for way in ways:
        try:
            found.append(vars(trial.record(way, world)))
        except ZkitError as error:
            found.append(str(error))
    return found


def _switch_off_dropout(module: nn.Module) -> Iterator[tuple[str, float]]:
    """Set every dropout to nothing, also those that a layer of attention keeps as a number; name what was more."""
    for name, inner in module.named_modules():
        own = {"p": inner.p} if isinstance(inner, nn.Dropout) else vars(inner)
        for key in [key for key, value in own.items() if (key == "p" or key.endswith("dropout")) and isinstance(value, float) and value]:
            yield f"{name}.{key}".removesuffix(".p"), own[key]
            setattr(inner, key, 0.0)

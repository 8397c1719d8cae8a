"""The optimiser step, and the loop around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zephyr_kit import ZkitError
from zephyr_kit.checkpoint import State
from zephyr_kit.comparison import Comparison, Measured
from zephyr_kit.exits import Exit
from zephyr_kit.feed import StepWork
from zephyr_kit.gradients import sum_gradients
from zephyr_kit.masters import Masters
from zephyr_kit.protocols import Objective, Outcome, Policy, Scores, Surveying, survey_of
from zephyr_kit.shares import like, local, share_of, whole
from zephyr_kit.waits import Waits
from zephyr_kit.world import World

Loss = Callable[[Scores, Scores | None], Outcome]
EVERY_RANK = (1 << 32) - 1
"""In place of a rank, for random numbers that are the same on all."""


class TrainingError(ZkitError):
    """Training that cannot go on."""


class LackError(TrainingError):
    """Memory that lacked on one of several ranks that share weights or a batch: only a new start brings them together again."""

    exit = Exit.CRASHED

    def __init__(self, text: str, lack: str) -> None:
        super().__init__(text)
        self.lack = lack


class NumbersError(TrainingError):
    """Losses, gradients or weights that are no longer finite."""

    exit = Exit.NUMBERS


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over a step, still on the device: `loss`, the metrics, and the gradient norm."""

    step: int
    means: Mapping[str, Tensor]
    gradient_norm: Tensor
    learning_rate: float
    num_tokens: int
    num_targets: int
    waits: Sequence[Tensor] = ()
    """Seconds that each rank waited for the others, by rank; empty where that is not measured."""


class Trainer:
    """The one object that changes while training."""

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        *,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        learning_rate: Callable[[int], float],
        seed: int,
        clip: float = 1.0,
        world: World | None = None,
        updates_bfloat16: bool = False,
    ) -> None:
        self.policy, self.objective = policy, objective
        self.comparison = Comparison(policy, objective.needs_reference)
        self.masters = Masters.of(policy.module.named_parameters(), updates_bfloat16=updates_bfloat16)
        self.parameters = list(self.masters.optimized.values())
        if not self.parameters:
            raise TrainingError("the model has no trainable parameter")
        self.optimizer = optimizer(self.parameters)
        self.learning_rate, self.seed, self.clip = learning_rate, seed, clip
        self.world = world or World()
        self.num_steps_taken = 0
        # torch's fused optimizers look on the device whether to step, so that the host need not wait for what it would say.
        fused: bool = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self.skips_on_device = fused and not any(share_of(p) is not None for p in self.parameters)
        self._began: Tensor | None = None
        # With others that have a part in the computing of each batch.
        self._shares_work = self.world.num_in_team > 1 or any(share_of(p) is not None for p in policy.module.parameters())
        self._waits = Waits(self.world, self.parameters[0].device, met_before=self._shares_work)

    def step(self, work: StepWork) -> Totals:
        """Take one optimiser step over this rank's share of its batches; with a loss or gradient that is not finite, no update."""
        step = self.num_steps_taken
        if self._began is None:
            self._began = self._sketch()
        self.policy.module.train()
        seed_everything(self.seed, step, self.world.rank)
        totals = self._summed(work)
        with self._waits.measured():
            means = self._means(totals, work.num_units)
        waits = self._waits.by_rank()
        norm = self._update(self.learning_rate(step), means["loss"])
        self.num_steps_taken += 1
        return Totals(self.num_steps_taken, means, norm, self.learning_rate(step), work.num_tokens, work.num_targets, waits)

    def try_out(self, work: StepWork) -> None:
        """Compute gradients and drop them: whether the memory suffices."""
        self.policy.module.train()
        self._summed(work)
        self.optimizer.zero_grad()

    def has_moved(self) -> bool:
        """Whether any trained weight has changed since the first step that was taken here."""
        assert self._began is not None, "no step has been taken"
        return bool(self.world.total((self._sketch() != self._began).any().double()) > 0)

    @torch.no_grad()
    def evaluate(self, works: Iterable[StepWork]) -> dict[str, float]:
        """Means of the loss and of the metrics, without learning from them; gone through twice where the objective wants a survey."""
        self.policy.module.eval()
        totals: dict[str, Tensor] = {}
        count = 0
        loss_of = self._surveyed(works)
        for work in works:
            for item in work.works:
                _add(totals, loss_of(*self.comparison.scores(item)))
            count += work.num_units
        return {name: float(value) for name, value in self._means(totals, count).items()}

    def state(self) -> State:
        """All that the next step depends on, to be saved before it is taken; raises when something is no number."""
        values = {f"trained/{name}": p for name, p in self.masters.optimized.items()}
        values.update(_flatten(self.optimizer.state_dict()["state"], "optimizer"))
        tensors = {path: value for path, value in values.items() if isinstance(value, Tensor)}
        for path, value in tensors.items():
            if not torch.isfinite(local(value)).all():
                raise NumbersError(f"step {self.num_steps_taken}: {path} is no longer finite, so it is not kept; lower the learning rate")
        return State(self.num_steps_taken, tensors, {path: value for path, value in values.items() if path not in tensors})

    def load_state(self, state: State) -> None:
        """Go back to where `state` was taken."""
        self.masters.load(lambda name: state.tensors[f"trained/{name}"])
        flat = {path: self._shared_out(path, state.tensors[path]) for path in state.tensors if path.startswith("optimizer/")}
        values = _unflatten({**flat, **state.facts})
        optimizer = {int(index): value for index, value in values.get("optimizer", {}).items()}
        self.optimizer.load_state_dict({"state": optimizer, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.num_steps_taken = state.step

    def _summed(self, work: StepWork) -> dict[str, Tensor]:
        """The sums of loss and metrics, with gradients; memory that lacks on one rank lacks on all, and nothing is left of the step."""
        loss_of: Loss = self.objective
        survey = survey_of(self.objective)
        if survey is not None:
            measured = self._measured(survey, work)
            loss_of = survey.given(self.world.total_of_teams(measured.total) / measured.num_units)
            work = replace(work, works=measured.works)
        totals, lack = self._gradients(work, loss_of)
        self._share_lack(lack)
        return totals

    def _surveyed(self, works: Iterable[StepWork]) -> Loss:
        """The objective, with the mean over all of this if it compares with one."""
        survey = survey_of(self.objective)
        if survey is None:
            return self.objective
        assert iter(works) is not works, "what is gone through twice must be more than an iterator"
        total, count = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device), 0
        for work in works:
            measured = self._measured(survey, work)
            total, count = total + measured.total, count + measured.num_units
        return survey.given(self.world.total_of_teams(total) / count)

    def _measured(self, survey: Surveying, work: StepWork) -> Measured:
        measured = self.comparison.measured(survey, work, device=self.parameters[0].device)
        self._share_lack(measured.lack)
        return measured

    def _share_lack(self, lack: str) -> None:
        """Stop on all ranks where memory lacked on one."""
        if lack and self._shares_work:
            # The others are in the middle of a message that will not be answered.
            raise LackError(f"step {self.num_steps_taken + 1}: out of memory ({lack}); from here on in smaller batches", lack)
        with self._waits.measured():
            lacks = self.world.highest(int(bool(lack)))
        if lacks:
            self.optimizer.zero_grad()
            raise torch.OutOfMemoryError(lack or "on another rank")

    def _gradients(self, work: StepWork, loss_of: Loss) -> tuple[dict[str, Tensor], str]:
        """Add up the gradients of the batches; the sums of loss and metrics, and what memory lacked.

        An error's frames would hold its tensors, so it is not raised from here.
        """
        totals: dict[str, Tensor] = {}
        try:
            for item in work.works:
                outcome = loss_of(*self.comparison.scores(item))
                # Divided once, by the units of the whole step: batches and ranks are schedule, not mathematics.
                torch.autograd.backward(outcome.loss / work.num_units)
                _add(totals, outcome)
        except torch.OutOfMemoryError as error:
            return totals, str(error).splitlines()[0]
        return totals, ""

    def _means(self, totals: Mapping[str, Tensor], num_units: int) -> dict[str, Tensor]:
        """Over all ranks, in one message."""
        means = self.world.total_of_teams(torch.stack(list(totals.values()))) / num_units
        return dict(zip(totals, means, strict=True))

    def _shared_out(self, path: str, value: Tensor) -> Tensor:
        """A tensor of the optimizer's state of a parameter, shared out as that is."""
        return like(value, self.parameters[int(path.split("/")[1])])

    def _update(self, learning_rate: float, loss: Tensor) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        try:
            sum_gradients(self.parameters, self.world)
            norm = whole(nn.utils.clip_grad_norm_(self.parameters, self.clip or math.inf))
            self._optimize(skip=~(torch.isfinite(loss) & torch.isfinite(norm)))
        except torch.OutOfMemoryError as error:
            # Smaller batches are no remedy: gradients may be summed on some ranks, or some weights updated.
            told = str(error).splitlines()[0]
            raise TrainingError(
                f"step {self.num_steps_taken + 1}: no memory for the update ({told}); take a leaner optimizer, or a smaller batch"
            ) from error
        self.optimizer.zero_grad()
        self.masters.give_back()
        return norm.detach()

    def _optimize(self, *, skip: Tensor) -> None:
        """Let the optimizer step, unless the flag says not to."""
        # What ranks hold copies of must stay the same, however it is rounded.
        seed_everything(self.seed, self.num_steps_taken, EVERY_RANK)
        if self.skips_on_device:
            self.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        elif skip:
            return
        self.optimizer.step()

    @torch.no_grad()
    def _sketch(self) -> Tensor:
        """A figure for each parameter, which changes when one of its weights does."""
        return torch.stack([torch.linalg.vector_norm(local(p), dtype=torch.float64) for p in self.parameters])


def seed_everything(*numbers: int) -> None:
    """Set torch's random state to a pure function of these numbers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def _add(totals: dict[str, Tensor], outcome: Outcome) -> None:
    for name, value in {"loss": outcome.loss, **outcome.metrics}.items():
        more = value.detach().double()
        totals[name] = totals[name] + more if name in totals else more


def _flatten(values: Mapping[Any, Any], path: str) -> dict[str, Any]:
    """Nested mappings as one, with paths as keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{path}/{key}") if isinstance(value, Mapping) else {f"{path}/{key}": value})
    return flat


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *above, last = path.split("/")
        table = nested
        for name in above:
            table = table.setdefault(name, {})
        table[last] = value
    return nested

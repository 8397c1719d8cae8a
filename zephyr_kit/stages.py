"""The tables of a preset's stages: what trains, gathers or measures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Interval

from zephyr_kit.binarise import Binarise
from zephyr_kit.config import default_use, suggest
from zephyr_kit.gate import Gate
from zephyr_kit.metrics import HELD_OUT
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import INLINE, Completer, Judge, Objective, OptimizerFactory, Suite, metrics_of

if TYPE_CHECKING:
    from zephyr_kit.plan import Indices, Plan

Positive = Annotated[int, Gt(0)]
BASE = "base"
"""What an evaluation calls the model of [model], as it is before any training."""
Sharding = Literal["replicated", "sharded", "hybrid"]
Share = Annotated[float, Interval(ge=0, le=1)]
CPU_TOKENS_PER_BATCH = 2048
"""More brings a CPU nothing but memory in use: the head's logits need no second computation in small batches."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a stage trains. A step is counted over all devices, in examples or in tokens."""

    learning_rate: Annotated[float, Gt(0)]
    """The highest one."""
    epochs: Annotated[float, Gt(0)] | None = None
    """How many times to see the data."""
    steps: Positive | None = None
    """How many optimiser steps to take, instead of `epochs`."""
    examples_per_step: Positive | None = None
    tokens_per_step: Positive | None = None
    """Tokens with each prompt counted once."""
    tokens_per_batch: Positive | None = None
    """What one device, or a team of `context_parallel`, takes at once; as much as its memory holds and a step fills, unless given. Changes
    no result."""
    sharding: Sharding | Literal["auto"] = "auto"
    """Whether each of several devices holds the whole model (`replicated`) or a share of it (`sharded`; `hybrid`: shared out over the
    devices of a machine, and each machine holds it whole); what the plan says, unless given. Changes no result."""
    context_parallel: Positive = 1
    """Devices that compute each batch together, each a part of its tokens, for rows that are longer than one device holds; their number
    is a multiple of it. On one device, and in the result, it changes nothing."""
    share_prompts: bool = True
    """Compute the prompt of several completions once; changes no result."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: Share = 0.0
    """Share of the steps over which the learning rate rises."""
    optimizer: OptimizerFactory = default_use("adamw")
    clip: Annotated[float, Ge(0)] = 1.0
    """Highest norm of the gradient; 0 for no limit."""
    checkpoint_every: Positive = 100
    keep_checkpoints: Positive = 2
    """The last ones."""
    keep_best: str | None = None
    """A metric by which the best checkpoint is kept besides: `held_out/loss`, say. The lowest of a loss, the highest of others."""
    held_out_every: Positive = 100
    """Steps between two looks at the held-out data; there is always one at the end."""

    def plan(self, lengths: Indices, seed: int) -> Plan:
        """The steps over examples of these lengths (examples,), in tokens."""
        from zephyr_kit.plan import Plan

        return Plan(
            lengths,
            seed,
            examples_per_step=self.examples_per_step,
            tokens_per_step=self.tokens_per_step,
            epochs=self.epochs,
            steps=self.steps,
        )

    def refuse_unknown_best(self, metrics: Iterable[str], *, held_out: bool) -> None:
        """Raise ValueError where `keep_best` is neither among these metrics of the objective nor among what is measured with any."""
        measured = ["loss", *metrics]
        known = [*measured, "gradient_norm", *(f"{HELD_OUT}{name}" for name in measured if held_out)]
        if self.keep_best is not None and self.keep_best not in known:
            raise ValueError(f'`train.keep_best` = "{self.keep_best}": there is no such metric{suggest(self.keep_best, known)}')

    @property
    def capacity(self) -> int:
        """`tokens_per_batch`, where nothing has chosen it: what suits a CPU."""
        return self.tokens_per_batch or CPU_TOKENS_PER_BATCH

    def __post_init__(self) -> None:
        _just_one(self, "epochs", "steps")
        _just_one(self, "examples_per_step", "tokens_per_step")


@dataclass(frozen=True)
class TrainStage:
    """A stage that minimises an objective."""

    objective: Objective
    data: tuple[Portion, ...]
    train: Train
    held_out: tuple[Portion, ...] = ()
    max_length: Positive = 2048
    """Tokens of a prompt with its longest completion."""
    too_long: Literal["cut", "drop", "refuse"] = "cut"
    """What to do with longer ones; `cut` ones and `drop`ped ones are counted by name, `refuse`d ones are bad rows."""
    bad_rows: Share = 0.01
    """The share of rows that may be bad before the run stops."""
    gate: Gate = field(default_factory=Gate)
    """What else the data must be like, or the run stops before its first step."""
    reference: Literal["cached", "live"] | None = None
    """Score the reference once, before the first step (`cached`, unless said otherwise), or again and again while training."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("needs at least one table in `data`")
        self._check_best()
        for portion in (*self.data, *self.held_out):
            _check_rule(portion.binarise, self.objective)
        if self.reference is not None and not self.objective.needs_reference:
            raise ValueError(f'`reference` = "{self.reference}": the objective compares with no reference')

    def _check_best(self) -> None:
        """Refuse to keep the best by what is never measured, as far as that can be known beforehand."""
        best = self.train.keep_best
        if (best or "").startswith(HELD_OUT) and not self.held_out:
            raise ValueError(f'`train.keep_best` = "{best}": there is no `held_out` data to be measured on')
        if best not in (None, "loss", f"{HELD_OUT}loss") and (names := metrics_of(self.objective)) is not None:
            self.train.refuse_unknown_best(names, held_out=bool(self.held_out))


@dataclass(frozen=True)
class EvaluateStage:
    """A stage that measures the models of the stages before it."""

    suites: tuple[Suite, ...]
    base: bool = False
    """Measure the model of [model] too, as it is before any training, under the name `base`."""

    def __post_init__(self) -> None:
        if not self.suites:
            raise ValueError("needs at least one table in `suites`")


@dataclass(frozen=True)
class Writer:
    """Somebody who writes replies, and how; the other keys of its table are the completer's own."""

    completer: Completer = field(metadata={INLINE: True})
    samples: Positive = 1
    """How many replies to each dialogue."""
    temperature: Annotated[float, Ge(0)] = 1.0
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    max_new_tokens: Positive = 1024
    system: str | None = None
    """A system message in place of the dialogue's own, if it has one: a principle to follow, for instance."""


@dataclass(frozen=True, kw_only=True)
class GatherStage:
    """What the stages that gather rows share."""

    held_out: Annotated[int, Ge(0)] = 0
    """Rows of so many prompts are kept apart, as the part `held_out`."""
    unfinished: Literal["drop", "keep"] = "drop"
    """What to do with a reply that came to `max_new_tokens` before it came to its end; counted either way."""
    bad_rows: Share = 0.01
    """The share of rows that may be bad, or give no prompt, before the run stops."""
    max_failed: Share = 0.02
    """The share of replies, or of judgements, that may fail after all that could be tried, before the stage stops."""
    max_cost: Annotated[float, Gt(0)] | None = None
    """US dollars that the answers may cost, those known from before included; needs the endpoint's `price`."""


@dataclass(frozen=True, kw_only=True)
class FeedbackStage(GatherStage):
    """A stage that samples replies to prompts, has them judged, and makes pairs of them."""

    prompts: tuple[Portion, ...]
    """Where the prompts come from: each dialogue up to its first reply."""
    completers: tuple[Writer, ...]
    judge: Judge
    draw: Positive | None = None
    """So many of all the samples for each prompt, drawn at random; all of them unless given."""
    binarise: Binarise = field(default_factory=Binarise)
    """Which of the judged replies become pairs."""
    check: Share = 0.1
    """The share of prompts that is judged again, with the replies in reverse order and by `second_judges`, to report agreement."""
    second_judges: tuple[Judge, ...] = ()

    def __post_init__(self) -> None:
        _needs_one(self, "prompts", "completers")
        _refuse_pairs(self.prompts, "prompts")
        if self.second_judges and not self.check:
            raise ValueError("`second_judges` with `check` = 0: they would be shown nothing")
        samples = sum(writer.samples for writer in self.completers)
        if self.draw is not None and self.draw > samples:
            raise ValueError(f"`draw` = {self.draw}: the completers write only {samples} samples for each prompt")


@dataclass(frozen=True, kw_only=True)
class DistillStage(GatherStage):
    """A stage in which a teacher writes dialogues from seed prompts: both the replies and the user's next requests."""

    seeds: tuple[Portion, ...]
    """Where the first requests come from: each dialogue up to its first reply."""
    teacher: Writer
    user: Writer | None = None
    """Who writes the user's next request; the teacher, unless somebody else is named."""
    exchanges: Positive = 3
    """How many requests, with their replies, a dialogue has at most."""

    def __post_init__(self) -> None:
        _needs_one(self, "seeds")
        _refuse_pairs(self.seeds, "seeds")
        for name, writer in (("teacher", self.teacher), ("user", self.user)):
            if writer is not None and writer.samples != 1:
                raise ValueError(f"`{name}.samples` = {writer.samples}: a dialogue goes on with one reply")


Task = TrainStage | FeedbackStage | DistillStage | EvaluateStage

KINDS: dict[str, type] = {"objective": TrainStage, "completers": FeedbackStage, "teacher": DistillStage, "suites": EvaluateStage}
"""The key that tells what a stage does."""
DOES = {"objective": "it trains", "completers": "it gathers feedback", "teacher": "it distills dialogues", "suites": "it measures"}


def _just_one(table: object, first: str, second: str) -> None:
    given = [name for name in (first, second) if getattr(table, name) is not None]
    if len(given) != 1:
        raise ValueError(f"takes either `{first}` or `{second}`, {'not both' if given else 'and has neither'}")


def _check_rule(binarise: Binarise | None, objective: Objective) -> None:
    """A rule that gives another number of completions than the objective takes would make every row a bad one."""
    given = None if binarise is None else binarise.num_completions
    if binarise is not None and given is not None and given != objective.completions:
        rule = f'`binarise` with rule = "{binarise.rule}"'
        raise ValueError(f"{rule} gives {given} completion(s), but the objective takes {objective.completions}")


def _refuse_pairs(portions: tuple[Portion, ...], name: str) -> None:
    if any(portion.binarise is not None for portion in portions):
        raise ValueError(f"`binarise` in `{name}`: only the prompts are taken of these rows")


def _needs_one(table: object, *names: str) -> None:
    for name in names:
        if not getattr(table, name):
            raise ValueError(f"needs at least one table in `{name}`")

"""Whether a stage's steps are the same however they are computed, on its own data and model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from zephyr_kit import ZkitError
from zephyr_kit.observe import Narrator
from zephyr_kit.protocols import Attention, broken_laws
from zephyr_kit.trial import Trial
from zephyr_kit.ways import Record, Way

TOLERANCES: Mapping[str, float] = {"float32": 1e-3, "float64": 1e-9}
"""What rounding may do, as a share of the largest loss and of the largest gradient."""
NOTHING = "no gradient: nothing was proved. None of these examples teaches anything here; try more of them (--examples), or other settings"
ADDS_UP, ORDER = "adds_up_over_examples", "does_not_look_at_the_order_of_examples"

Verdict = Literal["pass", "fail", "broken", "not tried"]


@dataclass(frozen=True)
class Comparison:
    """One way beside the plain one."""

    what: str
    verdict: Verdict
    loss: float | None = None
    """The largest difference of a step's loss, as a share of the largest loss."""
    gradient: float | None = None
    """The largest difference of a gradient, as a share of the largest gradient."""
    remark: str = ""


@dataclass(frozen=True)
class Certificate:
    """What was compared, on what, and what came of it."""

    stage: str
    objective: str
    dtype: str
    device: str
    start: str
    num_steps: int
    num_examples: int
    num_tokens: int
    tolerance: float
    switched_off: Mapping[str, float]
    """Dropout, by module: which units it hides depends on how a step is cut."""
    offset: float
    """How far its weights were moved from the reference, at random: where the two are the same, all margins are zero."""
    breaks: Mapping[str, str]
    """The laws that the objective says it breaks, and why."""
    comparisons: tuple[Comparison, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing differs that is not said to."""
        return not any(one.verdict == "fail" for one in self.comparisons)

    def facts(self) -> dict[str, Any]:
        """For a program."""
        return {**asdict(self), "holds": self.holds}


@dataclass(frozen=True)
class Detour:
    """Another way to the same result."""

    what: str
    way: Way
    law: str = ""
    """The law of objectives on which it rests."""
    attention: Attention | None = None


@dataclass(frozen=True)
class Scales:
    """Compares with the plain way."""

    plainly: Record
    tolerance: float
    breaks: Mapping[str, str]

    def compared(self, detour: Detour, record: Record | str) -> Comparison:
        """The verdict on a record, or why there is none."""
        if isinstance(record, str):
            return Comparison(detour.what, "not tried", remark=record)
        loss, gradient = self.plainly.apart(record)
        if loss <= self.tolerance and gradient <= self.tolerance:
            return Comparison(detour.what, "pass", loss, gradient)
        reason = self.breaks.get(detour.law, "")
        return Comparison(detour.what, "broken" if reason else "fail", loss, gradient, reason)


def certify(trial: Trial, *, tolerance: float, attentions: Mapping[str, type], ranks: int, narrator: Narrator) -> Certificate:
    """Take the steps in every way that there is here, and compare each with the plain one."""
    policy, switched_off = trial.policy()
    with narrator.track("where they start"):
        trial = trial.away(policy)
        teaches = trial.teaches(policy)
    del policy  # it goes before the next is loaded
    compared = _compared(trial, tolerance, attentions, ranks, narrator)
    found = tuple(compared) if teaches else (Comparison("one batch a step", "fail", remark=NOTHING),)
    return Certificate(
        trial.stage.name,
        str(trial.stage.settings.get("objective.use", type(trial.task.objective).__name__)),
        str(getattr(trial.stage.model, "dtype", "its own type")),
        str(trial.device),
        f"the model in {trial.start.folder}" if trial.start.folder else "the weights of [model]",
        len(trial.steps),
        len(trial.examples),
        int(trial.examples.lengths.sum()),
        tolerance,
        switched_off,
        trial.offset.amount,
        broken_laws(trial.task.objective),
        found,
    )


def _compared(trial: Trial, tolerance: float, attentions: Mapping[str, type], ranks: int, narrator: Narrator) -> Iterator[Comparison]:
    plain = Way(share_prompts=trial.shares_prompts)
    with narrator.track("the plain way"):
        plainly = trial.record(plain)
    scales = Scales(plainly, tolerance, broken_laws(trial.task.objective))
    for detour in _detours(trial, plain, attentions):
        with narrator.track(detour.what):
            yield scales.compared(detour, _record(trial, detour))
    with narrator.track(f"{ranks} ranks"):
        yield from (scales.compared(detour, record) for detour, record in _on_ranks(trial, plain, ranks))
    wanted = trial.task.train.context_parallel
    if wanted > 1 and ranks % wanted:
        what = f"each batch by {wanted} ranks together, as train.context_parallel says"
        yield Comparison(what, "not tried", remark=f"--ranks {wanted} tries it")


def _detours(trial: Trial, plain: Way, attentions: Mapping[str, type]) -> Iterator[Detour]:
    objective = trial.task.objective
    yield Detour("batches of half a step", replace(plain, room=0.5), ADDS_UP)
    yield Detour("each example alone", replace(plain, room=0.0), ADDS_UP)
    yield Detour("rows in the opposite order", replace(plain, reverse=True), ORDER)
    if objective.completions > 1 and plain.share_prompts:
        yield Detour("prompts repeated", replace(plain, share_prompts=False))
        yield Detour("prompts repeated, each example alone", replace(plain, room=0.0, share_prompts=False), ADDS_UP)
    if objective.needs_reference:
        yield Detour("reference scored beforehand", replace(plain, cached=True))
    for name, kind in attentions.items() if hasattr(trial.stage.model, "attention") else ():
        yield Detour(f"attention {name}", plain, attention=kind())


def _record(trial: Trial, detour: Detour) -> Record | str:
    """What the steps lead to by a detour; or why it cannot be tried here."""
    kernel = detour.attention
    if kernel is None:
        return trial.record(detour.way)
    if problems := kernel.problems(trial.device):
        return "; ".join(problems)
    try:
        return trial.by(kernel).record(detour.way)
    except (NotImplementedError, RuntimeError, ValueError, ZkitError) as error:
        # Kernels refuse types and sizes, which is no difference of results.
        return f"the kernel raised {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _on_ranks(trial: Trial, plain: Way, ranks: int) -> list[tuple[Detour, Record | str]]:
    if ranks == 1:
        return []
    wanted = trial.task.train.context_parallel
    team = wanted if wanted > 1 and ranks % wanted == 0 else ranks
    detours = [
        Detour(f"{ranks} ranks", plain, ADDS_UP),
        Detour(f"{ranks} ranks, weights shared out", replace(plain, sharded=True), ADDS_UP),
        Detour(f"{ranks} ranks, each batch {'' if team == ranks else f'by {team} '}together", replace(plain, num_in_team=team)),
    ]
    if trial.device.type != "cpu":
        return [(detour, "ranks are compared on a CPU: --device cpu") for detour in detours]
    return list(zip(detours, trial.records([detour.way for detour in detours], ranks), strict=True))

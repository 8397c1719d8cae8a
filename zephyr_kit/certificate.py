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
    ranks: int = 1
    obstacle: str = ""
    """Why it cannot be tried here."""


def certify(trial: Trial, *, dtype: str, tolerance: float, attentions: Mapping[str, type], ranks: int, narrator: Narrator) -> Certificate:
    """Take the steps in every way that there is here, and compare each with the plain one."""
    _, switched_off = trial.policy()
    plain = Way(share_prompts=trial.shares_prompts)
    with narrator.track("the plain way"):
        plainly = trial.record(plain)
    found = []
    for detour in _detours(trial, plain, attentions, ranks):
        with narrator.track(detour.what):
            found.append(_compared(trial, detour, plainly, tolerance))
    return Certificate(
        trial.stage.name,
        str(trial.stage.settings.get("objective.use", type(trial.task.objective).__name__)),
        dtype,
        str(trial.device),
        f"the model in {trial.start.folder}" if trial.start.folder else "the weights of [model]",
        len(trial.steps),
        len(trial.examples),
        int(trial.examples.lengths.sum()),
        tolerance,
        switched_off,
        broken_laws(trial.task.objective),
        tuple(found),
    )


def _detours(trial: Trial, plain: Way, attentions: Mapping[str, type], ranks: int) -> Iterator[Detour]:
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
        kernel = kind()
        yield Detour(f"attention {name}", plain, attention=kernel, obstacle="; ".join(kernel.problems(trial.device)))
    elsewhere = "" if trial.device.type == "cpu" else "ranks are compared on a CPU: --device cpu"
    if ranks > 1:
        yield Detour(f"{ranks} ranks", plain, ADDS_UP, ranks=ranks, obstacle=elsewhere)
        yield Detour(f"{ranks} ranks, weights shared out", replace(plain, sharded=True), ADDS_UP, ranks=ranks, obstacle=elsewhere)


def _compared(trial: Trial, detour: Detour, plainly: Record, tolerance: float) -> Comparison:
    if detour.obstacle:
        return Comparison(detour.what, "not tried", remark=detour.obstacle)
    try:
        record = trial.record(detour.way, attention=detour.attention, ranks=detour.ranks)
    except (NotImplementedError, RuntimeError, ValueError, ZkitError) as error:
        # Kernels and sharding refuse types and quantised weights; that is no difference of results.
        if detour.attention is None and not detour.way.sharded:
            raise
        return Comparison(detour.what, "not tried", remark=(str(error).splitlines() or [type(error).__name__])[0])
    loss, gradient = plainly.apart(record)
    same = loss <= tolerance and gradient <= tolerance
    reason = "" if same else broken_laws(trial.task.objective).get(detour.law, "")
    return Comparison(detour.what, "pass" if same else "broken" if reason else "fail", loss, gradient, reason)

"""One stage of a run, from its folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from zephyr_kit.facts.cost import Cost, Session, spent_in
from zephyr_kit.facts.curves import Curves, read_curves
from zephyr_kit.facts.evaluations import readable
from zephyr_kit.facts.files import read_table, read_tables
from zephyr_kit.lengths import Bar, Lengths
from zephyr_kit.protocols import Evaluation
from zephyr_kit.records import SEAL
from zephyr_kit.runs import BROKEN_LAWS, StageFolder
from zephyr_kit.stages import KINDS

Kind = Literal["trains", "gathers", "distills", "measures"]
State = Literal["done", "running", "failed", "unfinished", "to come"]
OF_KEY: Mapping[str, Kind] = dict(zip(KINDS, ("trains", "gathers", "distills", "measures"), strict=True))
PARTS = ("data", "held_out")
LEDGER = "data.json"


@dataclass(frozen=True)
class StageFacts:
    """All that is known of a stage."""

    name: str
    kind: Kind
    state: State
    before: str = ""
    """The stage whose model it starts from, or uses; empty if that is the one of `[model]`."""
    rows_of: Sequence[str] = ()
    """The stages that have gathered its data."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Its resolved keys: its own, and those of `[model]` as they are for it, under `model.`."""
    ledgers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What became of every row of `data` and of `held_out`; of a stage that gathers, of every row and reply, under `data`."""
    lengths: Mapping[str, Sequence[Lengths]] = field(default_factory=dict)
    """Of the examples of `data` and of `held_out`."""
    curves: Curves = Curves()
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What it left behind when it ended: the newest value of every metric, or counts."""
    evaluations: Sequence[Evaluation] = ()
    agreements: Sequence[Mapping[str, Any]] = ()
    """How far judges agree."""
    judges: Mapping[str, Any] = field(default_factory=dict)
    sessions: Sequence[Session] = ()
    """That have led to what stands here."""
    breaks: Mapping[str, str] = field(default_factory=dict)
    """Laws that the objective says it breaks, and why."""
    cost: Cost = Cost()
    complaints: Sequence[str] = ()
    """Of files that cannot be read, or are missing."""

    @property
    def progress(self) -> float | None:
        """Between 0 and 1, how much of its training is done; None if that cannot be told."""
        if self.state == "done":
            return 1.0
        steps = self.settings.get("train.steps")
        whole = steps or self.settings.get("train.epochs")
        done = self.curves.num_steps if steps else self.curves.last("epoch")
        return min(1.0, done / whole) if done is not None and whole else None

    @cached_property
    def sources(self) -> list[str]:
        """Where its rows come from, in words."""
        data = self.ledgers.get("data", {})
        return [str(portion.get("source")) for portion in (data.get("rows") or data).get("portions", ())]


@dataclass(frozen=True)
class StageReader:
    """Reads the folder of a stage; `most` and `whole` are those of `read_curves`."""

    folder: StageFolder
    kind: Kind
    settings: Mapping[str, Any]
    sessions: Sequence[Session]
    most: int
    whole: bool

    def read(self, before: str) -> StageFacts:
        """All of it; what is damaged is told among the complaints."""
        complaints: list[str] = []
        path = self.folder.path
        done = read_table(path / "done.json", complaints.append)
        ledgers = {part: found for part in PARTS if (found := read_table(path / f"{part}.json", complaints.append)) is not None}
        every = self.settings.get("train.held_out_every") if self.settings.get("held_out[0].use") else None
        curves = read_curves(self.folder.metrics, most=self.most, whole=self.whole, looks_every=every)
        facts = StageFacts(
            path.name,
            self.kind,
            self._state(done),
            before,
            [value for key, value in self.settings.items() if key.endswith("].name") and self.settings.get(_use_beside(key)) == "stage"],
            self.settings,
            ledgers,
            {part: [_lengths(one) for one in read_tables(path / f"{part}.lengths.json", complaints.append)] for part in ledgers},
            curves,
            {key: value for key, value in (done or {}).items() if key not in ("files", "evaluations", SEAL)},
            readable(done.get("evaluations"), "done.json", complaints.append) if done is not None and self.kind == "measures" else (),
            read_tables(path / "agreement.json", complaints.append),
            read_table(path / "judges.json", complaints.append) or {},
            self.sessions,
            read_table(path / BROKEN_LAWS, complaints.append) or {},
            complaints=(*complaints, *(self._missing(done, curves) if done is not None else ())),
        )
        return replace(facts, cost=_cost(facts))

    def _state(self, done: Mapping[str, Any] | None) -> State:
        if done is not None:
            return "done"
        if not self.sessions:
            return "unfinished" if self.folder.is_begun else "to come"
        if not self.sessions[-1].outcome and is_worked_on(self.folder.path.parent):
            return "running"
        return "failed" if self.sessions[-1].failed else "unfinished"

    def _missing(self, done: Mapping[str, Any], curves: Curves) -> Iterator[str]:
        """What a stage that has ended ought to have left."""
        left = () if self.kind == "measures" else (LEDGER,)
        for name in (*left, *done.get("files", {})):
            if not (self.folder.path / name).exists():
                yield f"{name} is missing"
        steps = done.get("steps")
        if self.kind == "trains" and isinstance(steps, int) and curves.num_steps < steps:
            lines = f"ends at step {curves.num_steps:,}" if curves.num_steps else "has no step that can be read"
            yield f"{self.folder.metrics.name} {lines}, but the stage ended at step {steps:,}: curves, tokens and times lack the rest"


def _cost(facts: StageFacts) -> Cost:
    spent = spent_in(facts.sessions)
    if facts.kind != "trains":
        return Cost(**spent, dollars=facts.figures.get("cost"))
    curves, data = facts.curves, facts.ledgers.get("data", {})
    rate = next((one for one in reversed(facts.sessions) if one.flops_per_token is not None), None)
    flops = None
    if rate is not None and rate.flops_per_token is not None:
        flops = rate.flops_per_token * curves.tokens + rate.reference_flops_per_token * data.get("tokens", 0)
    epoch, memory = curves.last("epoch"), [spent.pop("memory", None), *curves.steps.get("memory", ())]
    return Cost(
        examples=None if epoch is None or "kept" not in data else round(epoch * data["kept"]),
        tokens=curves.tokens,
        targets=curves.targets,
        flops=flops,
        step_seconds=curves.seconds,
        memory=max((int(size) for size in memory if size), default=None),
        **spent,
    )


def _use_beside(key: str) -> str:
    return f"{key.removesuffix('.name')}.use"


def _lengths(found: Mapping[str, Any]) -> Lengths:
    return Lengths(found["name"], found["mean"], tuple(found["quantiles"]), tuple(Bar(**bar) for bar in found["bars"]))


def is_worked_on(folder: Path, locks: Collection[str] | None = None) -> bool:
    """Whether a process has locked the folder; `locks` are those that are held, where they are known already."""
    try:
        about = (folder / ".lock").stat()
    except OSError:
        return False
    return f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}" in (held_locks() if locks is None else locks)


def held_locks() -> frozenset[str]:
    """Every file that is locked, by device and inode; none, where the system does not tell (it is asked in a way that disturbs no run)."""
    try:
        locks = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return frozenset()
    return frozenset(part for lock in locks if "FLOCK" in lock for part in lock.split() if part.count(":") == 2)

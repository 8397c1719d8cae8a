"""Presets: a TOML file as a pipeline of stages."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from zephyr_kit.changes import apply_changes
from zephyr_kit.config import Builder, Offers, PresetError, Setting, default_use, did_you_mean
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import Backend, Objective, OptimizerFactory, Suite

Positive = Annotated[int, Gt(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Seed = Annotated[int, Interval(ge=0, lt=2**63)]
STAGE_NAME = r"[a-z][a-z0-9_-]*"
RESERVED = ("smoke", "superseded")
"""Folders of a run that are not stages."""


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
    tokens_per_batch: Positive = 8192
    """What one device takes at once; changes no result."""
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
    held_out_every: Positive = 100
    """Steps between two looks at the held-out data; there is always one at the end."""

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
    reference: Literal["cached", "live"] | None = None
    """Score the reference once, before the first step (`cached`, unless said otherwise), or again and again while training."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("needs at least one table in `data`")
        if self.reference is not None and not self.objective.needs_reference:
            raise ValueError(f'`reference` = "{self.reference}": the objective compares with no reference')


@dataclass(frozen=True)
class EvaluateStage:
    """A stage that measures the models of the stages before it."""

    suites: tuple[Suite, ...]

    def __post_init__(self) -> None:
        if not self.suites:
            raise ValueError("needs at least one table in `suites`")


@dataclass(frozen=True)
class Needs:
    """What a machine must have for a preset; checked before anything is downloaded."""

    device: Literal["any", "cuda"] = "any"
    memory: Annotated[float, Ge(0)] = 0.0
    """GiB of the device (of the host, when there is no other)."""


@dataclass(frozen=True)
class Stage:
    """A stage with the model it trains or measures."""

    name: str
    task: TrainStage | EvaluateStage
    model: Backend
    changed: frozenset[str]
    """Keys of `[model]` that the stage sets itself."""
    settings: Mapping[str, Any]
    """Its resolved keys, flat, `model.` and its own."""


@dataclass(frozen=True)
class Preset:
    """A whole pipeline."""

    name: str
    file: str
    seed: int
    needs: Needs
    stages: tuple[Stage, ...]
    settings: tuple[Setting, ...]
    table: Mapping[str, Any]
    """The tables as they were read, with the changes of the command line."""
    description: str = ""


@dataclass(frozen=True)
class Header:
    """The keys of a preset outside its tables."""

    name: str
    seed: Seed = 42
    description: str = ""
    needs: Needs = field(default_factory=Needs)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"`name` = {self.name!r}: should be letters, digits, -, _ and ., a letter or digit first: it names a folder")


def load(path: Path, offers: Offers, *, changes: Sequence[str] = ()) -> Preset:
    """Read and resolve a preset file; `changes` are `path.to.key=value` from the command line."""
    table = read_toml(path)
    return resolve(table, offers, file=str(path), changes=changes)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        data = path.read_bytes()
        return tomllib.loads(data.decode("utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise PresetError(f"{path}: not a TOML file: {error}") from error
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise PresetError(f"{path}: not UTF-8: byte {data[error.start]:#04x} at line {line}; save it as UTF-8") from error
    except OSError as error:
        raise PresetError(f"{path}: cannot be read: {error.strerror}") from error


def resolve(table: Mapping[str, Any], offers: Offers, *, file: str, changes: Sequence[str] = ()) -> Preset:
    """Build every table of a preset, refusing whatever it does not understand."""
    table, origins = apply_changes(table, changes, file)
    builder = Builder(offers, file, origins)
    builder.refuse_unknown(table, [*(f.name for f in fields(Header)), "model", "stages"], "")
    header: Header = builder.build(Header, {key: value for key, value in table.items() if key not in ("model", "stages")}, "")
    stages = _stages(builder, table)
    return Preset(header.name, file, header.seed, header.needs, stages, tuple(builder.settings), table, header.description)


def _stages(builder: Builder, table: Mapping[str, Any]) -> tuple[Stage, ...]:
    model, stages = table.get("model"), table.get("stages")
    if not isinstance(model, dict):
        raise builder.error("", "needs a table [model]")
    if not isinstance(stages, dict) or not stages:
        raise builder.error("", "needs at least one table [stages.NAME]")
    _offer_in(builder, model, "model")
    built = tuple(_stage(builder, name, stage, model) for name, stage in stages.items())
    if isinstance(built[0].task, EvaluateStage):
        raise builder.error(f"stages.{built[0].name}", "measures models, but no stage before it trains one")
    return built


def _offer_in(builder: Builder, model: Mapping[str, Any], where: str) -> Backend:
    backend: Backend = builder.convert(Backend, model, where)
    return backend


def _stage(builder: Builder, name: str, table: Any, model: Mapping[str, Any]) -> Stage:
    where = f"stages.{name}"
    if not re.fullmatch(STAGE_NAME, name):
        raise builder.error(where, "a stage's name is made of small letters, digits, - and _, a letter first: it names a folder")
    if name in RESERVED:
        raise builder.error(where, f"`{name}` names another folder of a run; choose another name")
    if not isinstance(table, dict):
        raise builder.error("stages", f"`{name}` = {table!r}: should be a table")
    override = table.get("model", {})
    if not isinstance(override, dict):
        raise builder.error(where, f"`model` = {override!r}: should be a table of keys of [model] to override")
    kind = _kind(builder, table, where)
    if override and kind is EvaluateStage:
        raise builder.error(where, "`model`: a stage that measures takes the models as the stages before it left them")
    own = Builder(builder.offers, builder.file, builder.origins)
    task = own.build(kind, {key: value for key, value in table.items() if key != "model"}, where, also=["model"])
    # Built under its own path, so that errors and origins name the place where the override stands.
    inside = Builder(builder.offers, builder.file, {**_inherited(model, override, where), **builder.origins})
    backend = _offer_in(inside, {**model, **override}, f"{where}.model")
    builder.settings.extend(own.settings)
    if override:
        builder.settings.extend(inside.settings)
    settings = {s.path.removeprefix(f"{where}."): s.value for s in (*inside.settings, *own.settings)}
    return Stage(name, task, backend, frozenset(override), settings)


def _kind(builder: Builder, table: Mapping[str, Any], where: str) -> type:
    kinds: dict[str, type] = {"objective": TrainStage, "suites": EvaluateStage}
    found = [key for key in kinds if key in table]
    if len(found) == 1:
        return kinds[found[0]]
    near = "" if found else next(filter(None, (did_you_mean(key, kinds) for key in table)), "")
    raise builder.error(where, f"needs either `objective` (it trains) or `suites` (it measures){', not both' if found else near}")


def _inherited(model: Mapping[str, Any], override: Mapping[str, Any], where: str) -> dict[str, str]:
    return {f"{where}.model.{key}": "[model]" for key in model if key not in override}


def _just_one(table: object, first: str, second: str) -> None:
    given = [name for name in (first, second) if getattr(table, name) is not None]
    if len(given) != 1:
        raise ValueError(f"takes either `{first}` or `{second}`, {'not both' if given else 'and has neither'}")

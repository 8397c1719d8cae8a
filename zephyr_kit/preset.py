"""Presets: a TOML file as a pipeline of stages."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from zephyr_kit.changes import apply_changes
from zephyr_kit.config import Builder, Offers, PresetError, Setting, did_you_mean, suggest
from zephyr_kit.gathered import StageRows, portions_in, within
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import Backend, Tracker
from zephyr_kit.stages import BASE, DOES, KINDS, DistillStage, EvaluateStage, FeedbackStage, GatherStage, Task, TrainStage

Seed = Annotated[int, Interval(ge=0, lt=2**63)]
STAGE_NAME = r"[a-z][a-z0-9_-]*"
RESERVED = ("evaluations", "smoke", "superseded")
"""Folders of a run that are not stages."""


@dataclass(frozen=True)
class Needs:
    """What a machine must have for a preset; checked before anything is downloaded."""

    device: Literal["any", "cuda"] = "any"
    memory: Annotated[float, Ge(0)] = 0.0
    """GiB of the device (of the host, when there is no other)."""


@dataclass(frozen=True)
class Stage:
    """A stage with the model it trains, samples from or measures."""

    name: str
    task: Task
    model: Backend
    changed: frozenset[str]
    """Keys of `[model]` that the stage sets itself."""
    settings: Mapping[str, Any]
    """Its resolved keys, flat, `model.` and its own."""
    remark: str = ""
    """What of it follows from another table, and a reader of that one would not expect."""


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
    track: tuple[Tracker, ...] = ()


@dataclass(frozen=True)
class Header:
    """The keys of a preset outside its tables."""

    name: str
    seed: Seed = 42
    description: str = ""
    needs: Needs = field(default_factory=Needs)
    track: tuple[Tracker, ...] = ()
    """Where figures of training are shown, besides the terminal; changes no result."""

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
    settings = tuple(builder.settings)
    return Preset(header.name, file, header.seed, header.needs, stages, settings, table, header.description, header.track)


def _stages(builder: Builder, table: Mapping[str, Any]) -> tuple[Stage, ...]:
    model, stages = table.get("model"), table.get("stages")
    if not isinstance(model, dict):
        raise builder.error("", "needs a table [model]")
    if not isinstance(stages, dict) or not stages:
        raise builder.error("", "needs at least one table [stages.NAME]")
    _offer_in(builder, model, "model")
    built = tuple(_stage(builder, name, stage, model) for name, stage in stages.items())
    for number, stage in enumerate(built):
        before = built[:number]
        if isinstance(stage.task, EvaluateStage) and not any(isinstance(one.task, TrainStage) for one in before):
            raise builder.error(f"stages.{stage.name}", "measures models, but no stage before it trains one")
        if isinstance(stage.task, EvaluateStage) and stage.task.base and any(one.name == BASE for one in before):
            raise builder.error(f"stages.{stage.name}", f"`{BASE}` = true: a stage before it has that name too")
        for key, rows in _rows_of_stages(stage.task):
            _check_rows(builder, f"stages.{stage.name}.{key}", rows, {one.name: one.task for one in before})
    return built


def _rows_of_stages(task: Task) -> Iterator[tuple[str, StageRows]]:
    """Each table of a stage that takes the rows of another, and where it stands."""
    for key, portions in portions_of(task).items():
        for number, portion in enumerate(portions):
            if isinstance(portion.source, StageRows):
                yield f"{key}[{number}]", portion.source


def _check_rows(builder: Builder, where: str, rows: StageRows, before: Mapping[str, Task]) -> None:
    gathering = {name: task for name, task in before.items() if isinstance(task, GatherStage)}
    task = gathering.get(rows.name)
    if task is None:
        message = f"`name` = \"{rows.name}\": no stage before it gathers rows under that name"
        raise builder.error(where, message + suggest(rows.name, gathering))
    if rows.part == "held_out" and not task.held_out:
        raise builder.error(where, f"`part` = \"held_out\": stages.{rows.name} keeps no rows apart; set its `held_out`")


def portions_of(task: Task) -> dict[str, tuple[Portion, ...]]:
    """The data of a stage, by key."""
    if isinstance(task, TrainStage):
        return {"data": task.data, "held_out": task.held_out}
    if isinstance(task, FeedbackStage):
        return {"prompts": task.prompts}
    if isinstance(task, DistillStage):
        return {"seeds": task.seeds}
    suites = enumerate(task.suites)
    return {f"suites[{number}].{key}": portions for number, suite in suites for key, portions in portions_in(suite).items()}


def tables_of(task: Task) -> Iterator[tuple[str, Portion]]:
    """The same, each portion under the name of its table: `data[0]`."""
    for key, portions in portions_of(task).items():
        yield from ((f"{key}[{number}]", portion) for number, portion in enumerate(portions))


def training_stages(preset: Preset, names: Sequence[str] = ()) -> list[Stage]:
    """The stages that train, or those of these names."""
    training = {stage.name: stage for stage in preset.stages if isinstance(stage.task, TrainStage)}
    for name in names:
        if name not in training:
            raise PresetError(f"{preset.file}: no stage that trains is called {name!r}{suggest(name, training)}")
    if not training:
        raise PresetError(f"{preset.file}: no stage of it trains")
    return [training[name] for name in names or training]


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
    if override and kind is not TrainStage:
        raise builder.error(where, "`model`: only a stage that trains sets keys of [model]; others take the models as they were left")
    own = Builder(builder.offers, builder.file, builder.origins)
    task = own.build(kind, {key: value for key, value in table.items() if key != "model"}, where, also=["model"])
    # Built under its own path, so that errors and origins name the place where the override stands.
    inside = Builder(builder.offers, builder.file, {**_inherited(model, override, where), **builder.origins})
    backend = _offer_in(inside, {**model, **override}, f"{where}.model")
    task, remark = _laid_out(own, task, backend, table, where)
    builder.settings.extend(own.settings)
    if override:
        builder.settings.extend(inside.settings)
    settings = {s.path.removeprefix(f"{where}."): s.value for s in (*inside.settings, *own.settings)}
    return Stage(name, task, backend, frozenset(override), settings, remark)


def _laid_out(builder: Builder, task: Task, backend: Backend, table: Mapping[str, Any], where: str) -> tuple[Task, str]:
    """The stage with its rows as the model can read them, and what is to be said of that."""
    if not isinstance(task, TrainStage) or getattr(backend, "shares_prompts", True) or not task.train.share_prompts:
        return task, ""
    reason = "the backend of its [model] cannot compute a prompt once for several completions"
    path = f"{where}.train.share_prompts"
    if "share_prompts" in table["train"]:
        raise builder.error(f"{where}.train", f"`share_prompts` = true: {reason}; leave it out", path=path)
    builder.settings[:] = [Setting(path, False, "[model]") if s.path == path else s for s in builder.settings]  # noqa: FBT003  a value
    remark = f"prompts are repeated for each completion (train.share_prompts = false): {reason}" if task.objective.completions > 1 else ""
    return replace(task, train=replace(task.train, share_prompts=False)), remark


def _kind(builder: Builder, table: Mapping[str, Any], where: str) -> type:
    found = [key for key in KINDS if key in table]
    if len(found) == 1:
        return KINDS[found[0]]
    if found:
        raise builder.error(where, f"has {' and '.join(f'`{key}` ({DOES[key]})' for key in found)}: a stage does one thing")
    near = next(filter(None, (did_you_mean(key, KINDS) for key in table)), "")
    *most, last = (f"`{key}` ({does})" for key, does in DOES.items())
    raise builder.error(where, f"needs {', '.join(most)} or {last}{near}")


def bound(stage: Stage, run: Path) -> Stage:
    """The stage, with the rows of other stages taken from the folder of a run."""
    if isinstance(stage.task, EvaluateStage):
        return replace(stage, task=replace(stage.task, suites=tuple(bound_suite(suite, run) for suite in stage.task.suites)))
    changes: dict[str, Any] = {key: within(portions, run) for key, portions in portions_of(stage.task).items()}
    return replace(stage, task=replace(stage.task, **changes))


def bound_suite(suite: Any, run: Path) -> Any:
    """The same for a suite."""
    return replace(suite, **{key: within(portions, run) for key, portions in portions_in(suite).items()})


def _inherited(model: Mapping[str, Any], override: Mapping[str, Any], where: str) -> dict[str, str]:
    return {f"{where}.model.{key}": "[model]" for key in model if key not in override}

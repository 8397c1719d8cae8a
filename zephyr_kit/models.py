"""A model that a user names: of a run, in a folder, or in a repository."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_kit.changes import apply_changes
from zephyr_kit.config import USE, Builder, PresetError, did_you_mean, suggest
from zephyr_kit.plugins import Plugins
from zephyr_kit.preset import Stage, bound, load
from zephyr_kit.protocols import Backend, Start
from zephyr_kit.records import read_json
from zephyr_kit.stages import TrainStage
from zephyr_kit.weights import CONFIG, MEND, local_file, looks_like_folder

READER = "mistral"
"""The backend of a model that no preset names."""
PRESET, ADAPTER_FILE = "preset.toml", "adapter_config.json"
WIDE = ("float32", "float64")
"""Types that a model is read in when its files are; all others are read as the backend reads them unless told otherwise."""
WANTED = "give the folder that `zkit run` wrote, one in Hugging Face format, or owner/name"


@dataclass(frozen=True)
class NamedModel:
    """How to load it, and where it is from."""

    name: str
    backend: Backend
    start: Start
    run: Path | None = None
    """The folder of the run that has trained it."""
    stages: tuple[Stage, ...] = ()
    """Those of the run, up to the one that has left it."""

    @property
    def stage(self) -> Stage | None:
        """What has trained it."""
        return self.stages[-1] if self.stages else None

    @property
    def trained(self) -> list[Stage]:
        """The stages that have left a model."""
        return [stage for stage in self.stages if self.run is not None and _has_model(self.run, stage)]

    @property
    def place(self) -> str:
        """Where it is."""
        weights: str = getattr(self.backend, "weights", self.name)
        return str(self.start.folder or weights)


def find_model(given: str, plugins: Plugins, *, stage: str | None = None) -> NamedModel:
    """The model of a run's stage (the last one that is trained, unless named), of a folder, or of a repository `owner/name`."""
    return find_models(given, plugins, stages=() if stage is None else (stage,))[-1]


def find_models(given: str, plugins: Plugins, *, stages: Sequence[str] = (), keys: Sequence[str] = ()) -> list[NamedModel]:
    """The models of a run's stages in their order, of `stages` alone if any are named; else the one that is of a stage, or of no run.

    `keys` are more of the table of a model of no run, as `--model` has them: `dtype=float32`.
    """
    found = place_in_run(given)
    if found is None:
        if stages:
            raise PresetError(f"{given}: is no folder of a run, so it has no stage `{stages[0]}`")
        return [_of_no_run(given, plugins, keys)]
    run, own = found
    if own is not None and stages:
        raise PresetError(f"--stage {stages[0]}: {given} is of one stage already; give the run's folder, {run}")
    return _of_run(run, plugins, stages if own is None else (own,))


def place_in_run(given: str) -> tuple[Path, str | None] | None:
    """The run that a place is, with the stage if it is RUN/STAGE or RUN/STAGE/model; None for what is no run's, an export within it too."""
    folder = Path(given).absolute()
    if (folder / PRESET).exists():
        return folder if Path(given).is_absolute() else Path(given), None
    is_model = any((folder / name).exists() for name in (CONFIG, ADAPTER_FILE))
    stage = folder.parent if folder.name == "model" else folder
    if not (stage.parent / PRESET).exists() or (is_model and (stage is folder or stage.name not in _names_of_stages(stage.parent))):
        return None
    return stage.parent, stage.name


def _of_run(run: Path, plugins: Plugins, wanted: Sequence[str]) -> list[NamedModel]:
    preset = load(run / PRESET, plugins.offers)
    stages = [bound(one, run) for one in preset.stages]
    found = {
        stage.name: NamedModel(
            f"{run.absolute().name}-{stage.name}",
            stage.model,
            Start(run / stage.name / "model", seed=preset.seed),
            run,
            tuple(stages[: place + 1]),
        )
        for place, stage in enumerate(stages)
        if _has_model(run, stage)
    }
    if not found:
        raise PresetError(f"{run}: no stage has ended yet, so there is no model")
    for name in wanted:
        if name not in found:
            raise PresetError(f"{run}: has no trained stage `{name}`{suggest(name, found)}")
    return [model for name, model in found.items() if not wanted or name in wanted]


def _has_model(run: Path, stage: Stage) -> bool:
    return isinstance(stage.task, TrainStage) and (run / stage.name / "model").is_dir()


def _names_of_stages(run: Path) -> Collection[str]:
    try:
        stages: Mapping[str, Any] = tomllib.loads((run / PRESET).read_text("utf-8")).get("stages", {})
    except ValueError as error:
        raise PresetError(f"{run / PRESET}: damaged ({error})") from error
    return stages


def _of_no_run(given: str, plugins: Plugins, keys: Sequence[str]) -> NamedModel:
    """One in Hugging Face format, or an adapter, which stands on the model that its file names."""
    folder = Path(given).expanduser()
    if (folder / ADAPTER_FILE).exists():
        base = str(read_json(folder / ADAPTER_FILE, MEND).get("base_model_name_or_path"))
        changed = frozenset(key.partition("=")[0].strip() for key in keys)
        return NamedModel(folder.absolute().name, _backend(plugins, base, keys), Start(folder, changed))
    if looks_like_folder(given) and not folder.is_dir():
        raise PresetError(f"{given}: there is no such folder, and it is no name of a repository (OWNER/NAME)")
    if not folder.is_dir() and folder.parent.is_dir() and local_file(given, CONFIG, revision=None) is None:
        # A mistyped run must not become whatever a stranger has put on the hub under that name.
        near = did_you_mean(folder.name, (each.name for each in folder.parent.iterdir() if each.is_dir()))
        raise PresetError(
            f"{given}: there is no such folder in {folder.parent}{near}; if a repository of that name is meant, "
            f"start where there is no folder {folder.parent}"
        )
    if folder.is_dir() and not (folder / CONFIG).exists():
        raise PresetError(f"{given}: holds neither {PRESET} nor {CONFIG}; {WANTED}")
    return NamedModel(folder.absolute().name, _backend(plugins, given, keys), Start())


def _backend(plugins: Plugins, weights: str, keys: Sequence[str]) -> Backend:
    table: dict[str, Any] = {USE: READER, "weights": weights}
    config = local_file(weights, CONFIG, revision=None)
    told = {} if config is None else read_json(config, MEND)
    dtype = told.get("dtype") or told.get("torch_dtype")
    if dtype in WIDE:
        table["dtype"] = dtype
    table, origins = apply_changes(table, keys, weights, option="--model")
    backend: Backend = Builder(plugins.offers, weights, origins).convert(Backend, table, "model")
    return backend

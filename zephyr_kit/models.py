"""A model that a user names: of a run, in a folder, or in a repository."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.config import Builder, suggest
from zephyr_kit.plugins import Plugins
from zephyr_kit.preset import Stage, bound, load
from zephyr_kit.protocols import Backend, Start
from zephyr_kit.weights import local_file

READER = "mistral"
"""The backend of a model that no preset names."""
ADAPTER_FILE, CONFIG = "adapter_config.json", "config.json"
WIDE = ("float32", "float64")
"""Types that a model is read in when its files are; all others are read as the backend reads them unless told otherwise."""


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
    def place(self) -> str:
        """Where it is."""
        return str(self.start.folder or self.name)


def find_model(given: str, plugins: Plugins, *, stage: str | None = None) -> NamedModel:
    """The model of a run's stage (the last one that is trained, unless named), of a folder, or of a repository `owner/name`."""
    folder = Path(given)
    if (folder / "preset.toml").exists():
        return _of_run(folder, plugins, stage)
    if stage is not None:
        raise ZkitError(f"{given}: is no folder of a run, so it has no stage `{stage}`")
    run = folder.absolute().parent.parent
    if folder.name == "model" and (run / "preset.toml").exists():
        return _of_run(run, plugins, folder.absolute().parent.name)
    if (folder / ADAPTER_FILE).exists():
        base = str(json.loads((folder / ADAPTER_FILE).read_text("utf-8")).get("base_model_name_or_path"))
        return NamedModel(folder.name, _backend(plugins, base), Start(folder))
    if (folder / CONFIG).exists() or (not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", given)):
        return NamedModel(folder.name, _backend(plugins, given), Start())
    raise ZkitError(f"{given}: holds no preset.toml; give the folder that `zkit run` wrote, one in Hugging Face format, or owner/name")


def _of_run(run: Path, plugins: Plugins, stage: str | None) -> NamedModel:
    stages = [bound(one, run) for one in load(run / "preset.toml", plugins.offers).stages]
    trained = {one.name: place for place, one in enumerate(stages) if (run / one.name / "model").is_dir()}
    if not trained:
        raise ZkitError(f"{run}: no stage has ended yet, so there is no model")
    name = stage or list(trained)[-1]
    if name not in trained:
        raise ZkitError(f"{run}: has no trained stage `{name}`{suggest(name, trained)}")
    upto = tuple(stages[: trained[name] + 1])
    return NamedModel(f"{run.absolute().name}-{name}", upto[-1].model, Start(run / name / "model"), run, upto)


def _backend(plugins: Plugins, weights: str) -> Backend:
    table: dict[str, Any] = {"use": READER, "weights": weights}
    dtype = _dtype(weights)
    if dtype in WIDE:
        table["dtype"] = dtype
    backend: Backend = Builder(plugins.offers, weights, {}).convert(Backend, table, "model")
    return backend


def _dtype(weights: str) -> str | None:
    file = local_file(weights, CONFIG, revision=None)
    if file is None:
        return None
    try:
        config: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ZkitError(f"{file}: is not JSON: {error}") from error
    return config.get("dtype") or config.get("torch_dtype")

"""Finding presets by path or by name, and folders of runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

import zephyr_kit
from zephyr_kit.config import PresetError, did_you_mean, suggest
from zephyr_kit.plugins import Plugins

RUN = "preset.toml"
"""What tells the folder of a run."""


def find_preset(given: str, plugins: Plugins) -> Path:
    """A preset file: the path itself, else the preset of that name."""
    path = Path(given)
    if path.is_file():
        return path
    known = list(known_presets(plugins))
    name = _name(path)
    named = [file for file in known if file.stem == name]
    if len(named) > 1:
        raise PresetError(f"two presets are named {name!r}: {' and '.join(map(str, named))}; give the path of one")
    if named:
        return named[0]
    near = suggest(name or path.stem, (file.stem for file in known))
    raise PresetError(f"there is no preset {given!r}: no such file, and no such name{near}{plugins.remark('zkit_presets')}")


def known_presets(plugins: Plugins) -> Iterator[Path]:
    """All presets that can be named, ours first."""
    for folder in (_own_folder(), *plugins.preset_folders()):
        yield from sorted(folder.glob("*.toml"))


def pool(_: click.Context, __: click.Parameter, value: Path | None) -> Path | None:
    """A folder that holds runs, for an option."""
    if value is None or (value.is_dir() and not (value / RUN).exists()):
        return value
    if value.is_dir():
        raise click.BadParameter(f"{value} is a run; give the folder that it is in, {value.parent}")
    near = did_you_mean(value.name, (each.name for each in value.parent.iterdir() if each.is_dir())) if value.parent.is_dir() else ""
    raise click.BadParameter(f"there is no folder {value}{near}")


def _name(path: Path) -> str | None:
    """The name meant by `quickstart`, `quickstart.toml` or `presets/quickstart.toml`, as the documentation writes it."""
    if path.parent.name == "" and path.suffix != ".toml":
        return str(path)
    return path.stem if path.suffix == ".toml" and str(path.parent) in (".", "presets") else None


def _own_folder() -> Path:
    """Inside the installed package, or beside it in a checkout."""
    package = Path(zephyr_kit.__file__).parent
    return next((folder for folder in (package / "presets", package.parent / "presets") if folder.is_dir()), package / "presets")

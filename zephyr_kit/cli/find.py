"""Finding presets by path or by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import zephyr_kit
from zephyr_kit import ZkitError
from zephyr_kit.config import suggest
from zephyr_kit.plugins import Plugins


def find_preset(given: str, plugins: Plugins) -> Path:
    """A preset file: the path itself, else the preset of that name."""
    path = Path(given)
    if path.is_file():
        return path
    known = {file.stem: file for file in known_presets(plugins)}
    name = path.stem if path.suffix == ".toml" and not path.is_absolute() else given
    if name in known and (path.suffix != ".toml" or path.parent.name in ("", "presets")):
        return known[name]
    raise ZkitError(f"there is no preset {given!r}: no such file ({path.absolute()}), and no such name{suggest(name, known)}")


def known_presets(plugins: Plugins) -> Iterator[Path]:
    """All presets that can be named, ours first."""
    for folder in (*_own_folders(), *plugins.preset_folders()):
        yield from sorted(folder.glob("*.toml"))


def _own_folders() -> Iterator[Path]:
    """Inside the installed package, or beside it in a checkout."""
    package = Path(zephyr_kit.__file__).parent
    return (folder for folder in (package / "presets", package.parent / "presets") if folder.is_dir())

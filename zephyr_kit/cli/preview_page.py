"""`zkit preview` as one HTML file, which needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from zephyr_kit import ZkitError, __version__
from zephyr_kit.cli.passages import runs, visible
from zephyr_kit.cli.views import NUM_REASONS, View

if TYPE_CHECKING:
    from zephyr_kit.preset import Preset


def write_page(path: Path, preset: Preset, views: Sequence[View]) -> None:
    """Write the page."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(preset, views), "utf-8")
    except OSError as error:
        raise ZkitError(f"cannot write {path}: {error.strerror}; choose another file with --html") from error


def page(preset: Preset, views: Sequence[View]) -> str:
    """The page as text."""
    source = files("zephyr_kit.cli").joinpath("preview.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"visible": visible, "runs": runs}
    return environment.from_string(source).render(preset=preset, views=views, version=__version__, most_reasons=NUM_REASONS)

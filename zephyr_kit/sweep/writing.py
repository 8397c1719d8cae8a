"""A sweep as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zephyr_kit.config import plain
from zephyr_kit.records import write_json, write_text
from zephyr_kit.sweep.page import page
from zephyr_kit.sweep.spread import Outcome, figures_of
from zephyr_kit.sweep.text import text
from zephyr_kit.sweep.view import View, taken


def write_sweep(folder: Path, view: View) -> Path:
    """Write `sweep.json`, `sweep.md` and `sweep.html`; where the page is."""
    settings = [{"choices": setting.choices, "stages": plain(setting.stages)} for setting in view.settings]
    write_json(folder / "sweep.json", {"title": view.title, "runs": list(map(_told, view.outcomes)), "settings": settings})
    write_text(folder / "sweep.md", text(view))
    write_text(folder / "sweep.html", page(view))
    return folder / "sweep.html"


def _told(outcome: Outcome) -> dict[str, Any]:
    combination = outcome.combination
    about = {"name": combination.name, "choices": combination.choices, "state": outcome.state, "reason": outcome.reason}
    return {**about, "stages": figures_of(outcome.folder), "taken": taken(outcome)}

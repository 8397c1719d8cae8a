"""What stands in the way of a tracker, and what it calls a stage."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from zephyr_kit.observe import Run
from zephyr_kit.records import write_text
from zephyr_kit.runs import StageFolder


def missing(package: str) -> Sequence[str]:
    """A line if a package is not installed."""
    if importlib.util.find_spec(package) is not None:
        return []
    return [f"{package} is not installed: pip install 'zephyr-kit[track]'"]


def title(run: Run) -> str:
    """The run's folder and the stage: runs of a sweep have one name."""
    return f"{run.folder.parent.name}/{run.stage}"


def identity(run: Run) -> str:
    """Drawn once for a stage and kept in its folder, so that no other stage goes on in its run, were it at the same place."""
    file = StageFolder(run.folder).tracked
    if not file.exists():
        write_text(file, secrets.token_hex(8))
    return file.read_text("utf-8")


def remote(address: str) -> str | None:
    """An address, if it is one of a server, without a password that it may hold."""
    parts = urlsplit(address)
    host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    return f"{parts.scheme}://{host}" if parts.scheme in ("http", "https") else None

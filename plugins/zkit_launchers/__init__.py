"""Launchers: torch's elastic agent, on one machine or several; Slurm; Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Launcher


@hookimpl
def zkit_launchers() -> Mapping[str, type[Launcher]]:
    """Offer ways to start a run on several devices."""
    from zkit_launchers.elastic import Elastic
    from zkit_launchers.ray import Ray
    from zkit_launchers.slurm import Slurm

    return {"elastic": Elastic, "slurm": Slurm, "ray": Ray}

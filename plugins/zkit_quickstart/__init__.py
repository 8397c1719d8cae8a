"""Zephyr in miniature: data, a judge and a suite for a toy world of short animal stories, all made on the spot.

A small model trained from scratch on a CPU learns the world's language (`text`), to answer
(`chat`, from an imperfect teacher), and to answer well (`preference`), within minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import DataSource, Judge, Suite


@hookimpl
def zkit_data_sources() -> Mapping[str, type[DataSource]]:
    """The miniature world's texts, dialogues and preferences."""
    from zkit_quickstart.source import QuickstartData

    return {"quickstart": QuickstartData}


@hookimpl
def zkit_judges() -> Mapping[str, type[Judge]]:
    """A judge that counts points by rule."""
    from zkit_quickstart.judge import QuickstartJudge

    return {"quickstart": QuickstartJudge}


@hookimpl
def zkit_suites() -> Mapping[str, type[Suite]]:
    """An evaluation on stories that were never asked for in training."""
    from zkit_quickstart.suite import QuickstartSuite

    return {"quickstart": QuickstartSuite}

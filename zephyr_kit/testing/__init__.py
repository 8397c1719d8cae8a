"""Laws that plugins obey, as test classes to inherit from.

    class TestHinge(ObjectiveLaws):
        objective = Hinge(beta=0.01)

Each law says what the engine relies on, and what breaks without it: docs/laws.md has them all.
Run them with pytest, or by `zkit plugin check`.
"""

from __future__ import annotations

from collections.abc import Mapping

from zephyr_kit.testing.attention import AttentionLaws
from zephyr_kit.testing.backend import BackendLaws
from zephyr_kit.testing.completer import CompleterLaws
from zephyr_kit.testing.contribution import CommandsLaws, PresetsLaws
from zephyr_kit.testing.filter import FilterLaws
from zephyr_kit.testing.judge import JudgeLaws
from zephyr_kit.testing.launcher import LauncherLaws
from zephyr_kit.testing.laws import DoesNotApply, Laws
from zephyr_kit.testing.objective import ObjectiveLaws
from zephyr_kit.testing.observer import ENDED, HELD_OUT, STARTED, STEP, ObserverLaws
from zephyr_kit.testing.optimizer import OptimizerLaws
from zephyr_kit.testing.source import DataSourceLaws
from zephyr_kit.testing.stand_ins import ByteTokenizer, TableBackend, TablePolicy
from zephyr_kit.testing.strategies import examples, for_all, scored, trees
from zephyr_kit.testing.suite import SuiteLaws
from zephyr_kit.testing.tracker import TrackerLaws

KITS: Mapping[str, type[Laws]] = {
    "zkit_objectives": ObjectiveLaws,
    "zkit_data_sources": DataSourceLaws,
    "zkit_filters": FilterLaws,
    "zkit_backends": BackendLaws,
    "zkit_attentions": AttentionLaws,
    "zkit_optimizers": OptimizerLaws,
    "zkit_completers": CompleterLaws,
    "zkit_judges": JudgeLaws,
    "zkit_suites": SuiteLaws,
    "zkit_launchers": LauncherLaws,
    "zkit_trackers": TrackerLaws,
    "zkit_presets": PresetsLaws,
    "zkit_commands": CommandsLaws,
    **dict.fromkeys((STARTED, STEP, HELD_OUT, ENDED), ObserverLaws),
}
"""The laws of each hook."""

__all__ = [
    "KITS",
    "AttentionLaws",
    "BackendLaws",
    "ByteTokenizer",
    "CommandsLaws",
    "CompleterLaws",
    "DataSourceLaws",
    "DoesNotApply",
    "FilterLaws",
    "JudgeLaws",
    "LauncherLaws",
    "Laws",
    "ObjectiveLaws",
    "ObserverLaws",
    "OptimizerLaws",
    "PresetsLaws",
    "SuiteLaws",
    "TableBackend",
    "TablePolicy",
    "TrackerLaws",
    "examples",
    "for_all",
    "scored",
    "trees",
]

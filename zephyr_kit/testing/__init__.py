"""Laws that plugins obey, as test classes to inherit from.

    class TestHinge(ObjectiveLaws):
        objective = Hinge(beta=0.01)

Each law says what the engine relies on. Run them with pytest.
"""

from __future__ import annotations

from zephyr_kit.testing.attention import AttentionLaws
from zephyr_kit.testing.backend import BackendLaws
from zephyr_kit.testing.completer import CompleterLaws
from zephyr_kit.testing.filter import FilterLaws
from zephyr_kit.testing.judge import JudgeLaws
from zephyr_kit.testing.objective import ObjectiveLaws
from zephyr_kit.testing.optimizer import OptimizerLaws
from zephyr_kit.testing.random_data import random_scores, random_trees
from zephyr_kit.testing.source import DataSourceLaws

__all__ = [
    "AttentionLaws",
    "BackendLaws",
    "CompleterLaws",
    "DataSourceLaws",
    "FilterLaws",
    "JudgeLaws",
    "ObjectiveLaws",
    "OptimizerLaws",
    "random_scores",
    "random_trees",
]

"""Every objective that is built in obeys the laws that third parties are asked to obey."""

from __future__ import annotations

import pytest
from objectives import OBJECTIVES

from zephyr_kit.plugins import Plugins
from zephyr_kit.protocols import Objective
from zephyr_kit.testing import ObjectiveLaws

ALL = [pytest.param(each, id=f"{name}-{place}" if place else name) for name, some in OBJECTIVES.items() for place, each in enumerate(some)]


def test_none_is_left_out() -> None:
    assert OBJECTIVES.keys() == Plugins().offered(Objective).keys()


class TestObjectives(ObjectiveLaws):
    @pytest.fixture(autouse=True, params=ALL)
    def _objective(self, request: pytest.FixtureRequest) -> None:
        self.objective = request.param

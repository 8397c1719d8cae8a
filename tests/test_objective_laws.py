"""Every objective that is built in obeys the laws that third parties are asked to obey."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from objectives import OBJECTIVES

from zephyr_kit.plugins import Plugins
from zephyr_kit.protocols import Objective
from zephyr_kit.testing import ObjectiveLaws

ALL = [pytest.param(each, id=f"{name}-{place}" if place else name) for name, some in OBJECTIVES.items() for place, each in enumerate(some)]


def test_none_is_left_out() -> None:
    assert OBJECTIVES.keys() == Plugins().offered(Objective).keys()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_its_line_on_the_page_tells_its_keys(name: str) -> None:
    page = (Path(__file__).parents[1] / "docs/objectives.md").read_text("utf-8")
    lines = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    keys = [field.name for field in dataclasses.fields(OBJECTIVES[name][0])]  # type: ignore[arg-type]
    assert lines
    assert "as `kto`" in lines[0] or not [key for key in keys if f"`{key}`" not in lines[0]]


class TestObjectives(ObjectiveLaws):
    cases = 10

    @pytest.fixture(autouse=True, params=ALL)
    def _objective(self, request: pytest.FixtureRequest) -> None:
        self.objective = request.param

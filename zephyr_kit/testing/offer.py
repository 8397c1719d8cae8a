"""What all offers share that are written as a table of a preset."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from zephyr_kit.testing.laws import Laws


class OfferLaws(Laws):
    """The laws of whatever stands under `use`."""

    def test_is_a_frozen_dataclass(self) -> None:
        """A preset's table is its constructor call, and equal tables are equal objects.

        Without it, what an offer learns while it works hides in it: a resumed run, or one on other ranks, would not have it.
        """
        kind = type(getattr(self, self.subject))
        assert dataclasses.is_dataclass(kind), f"{kind.__name__} is no dataclass"
        parameters: Any = getattr(kind, "__dataclass_params__", None)
        assert parameters.frozen, f"{kind.__name__} is not frozen: @dataclass(frozen=True)"

    def test_can_be_copied(self) -> None:
        """A copy is equal to it.

        Without it, a stage cannot be resolved, bound to a run's folder, or sent to another process.
        """
        offer = getattr(self, self.subject)
        assert copy.deepcopy(offer) == offer

"""Laws of trackers."""

from __future__ import annotations

from zephyr_kit.protocols import Tracker
from zephyr_kit.testing.observer import ObserverLaws
from zephyr_kit.testing.offer import OfferLaws
from zephyr_kit.tracking import Tracking


class TrackerLaws(OfferLaws, ObserverLaws):
    """What the loop relies on when it tells a tracker how a run goes: it reads, and never steers."""

    subject = "tracker"
    title = "Trackers"
    tracker: Tracker

    @property
    def observer(self) -> Tracking:
        """The tracker as observers are told of a run."""
        return Tracking(self.tracker)

    def test_says_where_figures_go(self) -> None:
        """A tracker that sends figures away says where to; one that keeps them here says None.

        Without it, users are not told that figures leave their machine.
        """
        destination = self.tracker.destination()
        assert destination is None or destination.strip()

    def test_has_no_problems_when_it_can_be_opened(self) -> None:
        """`problems` is empty when it can be opened.

        Without it, the preflight refuses presets that would have run.
        """
        assert not self.tracker.problems(), self.tracker.problems()

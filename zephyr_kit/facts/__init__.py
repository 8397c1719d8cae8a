"""What is known of a run, read from its folder alone: no plugin is asked, no model library imported, and damage is told, not raised."""

from zephyr_kit.facts.compare import Difference, differing, told_apart
from zephyr_kit.facts.cost import Cost, Session
from zephyr_kit.facts.curves import Curves, Skip, read_curves
from zephyr_kit.facts.run import RunFacts, read_run
from zephyr_kit.facts.stage import Kind, StageFacts, State
from zephyr_kit.facts.troubles import Trouble

__all__ = [
    "Cost",
    "Curves",
    "Difference",
    "Kind",
    "RunFacts",
    "Session",
    "Skip",
    "StageFacts",
    "State",
    "Trouble",
    "differing",
    "read_curves",
    "read_run",
    "told_apart",
]

"""How the machines of a run tell each other that it has ended, and why."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from torch.distributed import Store  # type: ignore[attr-defined]

from zephyr_kit import ZkitError
from zephyr_kit.exits import Exit
from zephyr_kit.stopping import Stopped
from zkit_launchers.meeting import silence

ENDED, LEFT = "zkit/ended", "zkit/left"
SECONDS_TO_PART = 60.0
"""For the others to hear of the end, and to end their ranks; after that they are taken for gone."""
SECONDS_BETWEEN_LOOKS = 0.1


class RanksFailed(ZkitError):
    """What went wrong first, and will not go well by itself."""

    def __init__(self, text: str, code: Exit) -> None:
        super().__init__(text)
        self.exit = code


@dataclass(frozen=True, slots=True)
class Machines:
    """All that are at work, which share a store; it raises `DistError` when the machine that holds it is gone."""

    store: Store
    count: int

    def tell(self, why: RanksFailed | Stopped) -> None:
        """Why the run has ended here; what was told first stands."""
        self.store.compare_set(ENDED, "", json.dumps({"text": str(why), "exit": int(why.exit)}))

    def told(self) -> tuple[str, Exit] | None:
        """Why the run has ended, if a machine has told it."""
        if not self.store.check([ENDED]):
            return None
        why = json.loads(self.store.get(ENDED))
        return why["text"], next(code for code in Exit if code == why["exit"])

    def part(self) -> None:
        """Stay until all have heard of the end: the store, or what their ranks still read, may be in this very process."""
        until, left = time.monotonic() + SECONDS_TO_PART, self._count_left(1)
        while left < self.count and time.monotonic() < until:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            left = self._count_left(0)

    def _count_left(self, more: int) -> int:
        with silence():  # who holds the store may have seen first that all have heard
            return self.store.add(LEFT, more)

"""One life of a run, which ends by a fault from within.

    python -m tests.faults.life FAULT STEP run PRESET …
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

from .hits import FullDisk, Poison

FAULTS: dict[str, Callable[[int], Callable[[], None]]] = {
    "full disk": FullDisk,
    "NaN three times": lambda step: Poison((step, step + 1, step + 2), math.nan),
}


def main() -> None:
    fault, step, *arguments = sys.argv[1:]
    sys.argv = ["zkit", *arguments]
    FAULTS[fault](int(step))()
    from zephyr_kit.cli import main as zkit

    zkit(arguments)


if __name__ == "__main__":
    main()

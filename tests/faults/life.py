"""One life of a run, which ends by a fault from within.

    python -m tests.faults.life FAULT STEP run PRESET …
"""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .hits import SAVE, Poison, replace


@dataclass(frozen=True)
class FullDisk:
    """There is no room for a checkpoint from some step on."""

    step: int

    def __call__(self) -> None:
        def full(write: Callable[..., Any]) -> Callable[..., Any]:
            def writing(checkpoints: Any, begun: Any) -> Any:
                if begun.state.step >= self.step:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(checkpoints, begun)

            return writing

        replace(SAVE, full)


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

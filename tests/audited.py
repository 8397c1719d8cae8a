"""Runs `zkit` with an ear on what it does; a program: OUT COMMAND…"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

STARTED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
WATCHED = ("pickle.find_class", "exec", *STARTED, "socket.connect", "socket.bind", "builtins.input")
heard: dict[str, list[Any]] = {name: [] for name in WATCHED}
FROM_NAMES = ("socket.connect", "socket.bind")


def hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "exec":
        heard[event].append(getattr(arguments[0], "co_filename", "?"))
    elif event.startswith(WATCHED):
        name = next(name for name in WATCHED if event.startswith(name))
        shown = arguments[1:] if event in FROM_NAMES else arguments
        heard[name].append([repr(shown)[:300], *(frame.filename for frame in traceback.extract_stack()[:-1])])


if __name__ == "__main__":
    out = Path(sys.argv[1])
    sys.addaudithook(hear)
    from zephyr_kit.cli import main

    try:
        main(sys.argv[2:])
    finally:
        heard["exec"] = sorted(set(heard["exec"]))
        out.write_text(json.dumps(heard, indent=1))

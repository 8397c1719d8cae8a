"""Time and memory of a piece of work, in a process of its own, and the table of results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from zephyr_kit.sizes import GIB

RESULTS = Path(__file__).parent / "results"
SECONDS_BETWEEN_LOOKS = 0.2
ZKIT = str(Path(sys.executable).with_name("zkit"))
"""The command, as a user starts it."""
PACKAGES = ("datasketch", "tokenizers", "transformers")


@dataclass
class Peak:
    """Resident memory in bytes, at its highest: pages that processes share are counted in each."""

    parent: int = 0
    worker: int = 0
    """The largest."""
    together: int = 0

    def look(self) -> None:
        """Look at this process and those it has started."""
        import psutil

        own = psutil.Process()
        sizes = [_resident(process) for process in own.children(recursive=True)]
        self.parent = max(self.parent, _resident(own))
        self.worker = max(self.worker, *sizes, 0)
        self.together = max(self.together, _resident(own) + sum(sizes))

    def facts(self) -> dict[str, float]:
        """In GiB."""
        return {f"peak GiB, {name}": round(value / GIB, 3) for name, value in vars(self).items()}


def _resident(process: Any) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


@contextmanager
def watched() -> Iterator[Peak]:
    """Watch the memory of this process and its workers."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            peak.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
        peak.look()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds it took, and what came of it."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def processor_seconds() -> float:
    """What this process and the workers that have ended have used: unlike the time, the same on a busy machine."""
    return round(sum(os.times()[:4]), 1)


def apart(work: Callable[..., Any], *given: Any, folder: Path, processors: int, environment: Mapping[str, str] | None = None) -> Any:
    """What comes of the work in a fresh process with so many processors, its cache in `folder`."""
    cache = {"ZKIT_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    # Set here, not in the new process: an allocator reads its settings before anything else runs.
    with (
        mock.patch.dict(os.environ, {**cache, **(environment or {})}),
        ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=confine, initargs=(processors,)) as pool,
    ):
        return pool.submit(work, *given).result()


def report(name: str, rows: Sequence[Mapping[str, Any]], *, processors: int, packages: Sequence[str] = PACKAGES) -> None:
    """Print a table, a column for each size, and keep it as JSON."""
    width = max(len(key) for row in rows for key in row)
    for key in rows[0]:
        print(f"{key:{width}}", *(f"{_figure(row[key]):>14}" for row in rows))  # noqa: T201
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"surroundings": surroundings(processors, packages), "results": list(rows)}, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", "utf-8")


def surroundings(processors: int, packages: Sequence[str]) -> dict[str, Any]:
    """The machine, the versions, the command and the day."""
    return {
        "python": platform.python_version(),
        "processors": processors,
        "processor": _processor(),
        **_card(),
        "revision": _revision(),
        "packages": {each: found for each in packages if (found := _version(each))},
        # Where a folder lies on this machine is of use on no other.
        "command": " ".join(["python -m benchmarks", *("FOLDER" if Path(word).is_absolute() else word for word in sys.argv[1:])]),
        "date": date.today().isoformat(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """What git calls this state of the kit, "-dirty" if anything but results has changed since; None outside of a checkout."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    revision = _first_line([*git, "describe", "--always"])
    changed = _first_line([*git, "diff", "--name-only", "HEAD", "--", ".", ":!benchmarks/results"])
    return f"{revision}-dirty" if revision and changed else revision


def _card() -> dict[str, str]:
    """The first GPU and its driver, as the driver's own tool tells them; nothing where it is not there."""
    told = _first_line(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    if told is None:
        return {}
    name, _, driver = told.partition(", ")
    return {"gpu": name, "driver": driver}


def _first_line(command: Sequence[str]) -> str | None:
    """Of what it says; None where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()[0]  # noqa: S603
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _figure(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def _processor() -> str:
    """Its name, as Linux tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text("utf-8").splitlines() if told.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def confine(processors: int) -> None:
    """Let this process and its children use so many processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:processors])

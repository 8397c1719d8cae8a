"""R: a long run with faults at random; it must end by itself, with the bits of a run without any.

    python -m tests.faults.soak --minutes 60

A run without faults goes beside it, on another core.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .hits import SAVE, Poison, replace
from .job import Job, write_job
from .runner import Going, finish, start, wait_for

SECONDS_BETWEEN_SAVES = 3.6
"""As 300 faults in 6 hours have it, one every 20 saves; a real run's are minutes."""
SAVES_BETWEEN_FAULTS = 20
CODES = {"kill": -signal.SIGKILL, "SIGTERM": 143, "full disk": 4, "damaged checkpoint": -signal.SIGKILL, "NaN three times": 5}
"""How a life ends with each fault."""


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ["ZKIT_CACHE"] = f"{folder}/cache"
        print(json.dumps(soak(Path(folder), arguments.minutes, arguments.seed), indent=1))  # noqa: T201


def soak(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    """The figures."""
    seconds = _seconds_a_step(folder)
    steps, every = int(minutes * 60 / seconds), max(1, int(SECONDS_BETWEEN_SAVES / seconds))
    job = write_job(folder / "job", steps=steps, every=every, looks=every, alone=True)
    begun = time.monotonic()
    beside = start(job, folder / "straight")
    faults = _strike(job, folder / "run", every, random.Random(seed))
    took = time.monotonic() - begun
    assert _end(beside) == 0, beside.said
    return {
        "steps": steps,
        "minutes": round(took / 60, 1),
        "faults": dict(faults),
        "the same bits": job.result(folder / "run") == job.result(folder / "straight"),
        "effective training time": round(_seconds_of(folder / "straight") / took, 3),
    }


def _seconds_a_step(folder: Path) -> float:
    trial = write_job(folder / "trial", steps=1500, every=100, looks=100, alone=True)
    finish(trial, folder / "trial" / "run")
    times = [json.loads(line) for line in (folder / "trial" / "run" / "sft" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in times if line["step"] > 500 and "num_tokens" in line]
    return sum(line["num_tokens"] / line["tokens_per_second"] for line in steps) / len(steps)


def _strike(job: Job, output: Path, every: int, draw: random.Random) -> Counter[str]:
    """Fault after fault, each in a life of its own, until the run has ended."""
    faults: Counter[str] = Counter()
    while True:
        saves = draw.randint(SAVES_BETWEEN_FAULTS // 2, SAVES_BETWEEN_FAULTS * 3 // 2)
        at = _newest(output) + saves * every + draw.randrange(every)
        if at >= job.steps - every:
            going = start(job, output)
            assert _end(going) == 0, going.said
            return faults
        kind = draw.choice(sorted(CODES))
        prepare = {"full disk": FullDisk(at), "NaN three times": Poison((at, at + 1, at + 2), math.nan)}.get(kind)
        going = start(job, output, prepare=prepare)
        if prepare is None:
            wait_for(lambda step=at: _newest(output) >= step - every, going, every=0.05, seconds=math.inf)
            time.sleep(draw.uniform(0, 1))
            going.send(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
        assert _end(going) == CODES[kind], f"{kind}: {going.said}"
        if kind == "damaged checkpoint":
            _damage(output / "sft" / "checkpoints" / f"step-{_newest(output):08d}", draw)
        faults[kind] += 1


def _newest(output: Path) -> int:
    return max((int(place.name[5:]) for place in output.glob("sft/checkpoints/step-*")), default=0)


def _damage(place: Path, draw: random.Random) -> None:
    path = draw.choice(sorted(place.iterdir()))
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _end(going: Going) -> int:
    """However long it takes."""
    going.process.wait()
    return going.end()


def _seconds_of(output: Path) -> float:
    """From the start of a run to its end."""
    return (output / "report.md").stat().st_mtime - (output / ".lock").stat().st_ctime


if __name__ == "__main__":
    main()

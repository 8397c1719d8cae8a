"""R: a long run with faults at random; it must end by itself, with the bits of a run without any.

    python -m tests.faults.soak --minutes 60

A run without faults goes beside it, on another core. Each life is a new Python, so that what starts cost is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disks import MIB, fill, small_disk
from .job import Job, write_job
from .life import FAULTS

SECONDS_BETWEEN_SAVES = 8.0
"""A real run saves every some minutes; a fault every 20 saves is one every 160 seconds here."""
SAVES_BETWEEN_FAULTS = 20
CODES = {"kill": -signal.SIGKILL, "SIGTERM": 143, "full disk": 4, "damaged checkpoint": -signal.SIGKILL, "NaN three times": 5}
"""How a life ends with each fault."""
TRIAL_STEPS = 1500
BYTES_PER_STEP = 2000
"""Of room for metrics, a copy of them, and reports."""
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Life:
    """One process of a run."""

    process: subprocess.Popen[bytes]
    log: Path

    def end(self, code: int) -> None:
        """However long it takes."""
        assert self.process.wait() == code, self.log.read_text(errors="replace")


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
    every = max(1, int(SECONDS_BETWEEN_SAVES / seconds))
    steps = max(2 * every, int(minutes * 60 / seconds / 2))
    job = write_job(folder / "job", steps=steps, every=every, looks=every)
    room = 64 * MIB + 2 * steps * BYTES_PER_STEP
    with small_disk(folder / "disk", room) as disk, small_disk(folder / "beside", room) as beside:
        straight, run = (beside or folder) / "straight", (disk or folder) / "run"
        begun, other = time.monotonic(), _begin(job, straight)
        faults = Strikes(job, run, every, random.Random(seed), disk).until_it_ends()
        took = time.monotonic() - begun
        other.end(0)
        return {
            "steps": len(job.stages) * steps,
            "minutes": round(took / 60, 1),
            "faults": dict(faults),
            "the disk": "was full" if disk else "said that it was full",
            "the same bits": job.result(run) == job.result(straight),
            "effective training time": round(_seconds_of(straight) / took, 3),
        }


def _begin(job: Job, output: Path, *fault: str) -> Life:
    module = "tests.faults.life" if fault else "zephyr_kit"
    command = [sys.executable, "-m", module, *fault, "run", str(job.preset), "--output", str(output)]
    log = job.folder / f"{output.name}.log"
    with log.open("wb") as said:
        return Life(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=ROOT), log)


def _seconds_a_step(folder: Path) -> float:
    """The mean over both stages."""
    trial = write_job(folder / "trial", steps=TRIAL_STEPS, every=100, looks=100)
    _begin(trial, folder / "trial" / "run").end(0)
    logs = [(folder / "trial" / "run" / stage / "metrics.jsonl").read_text() for stage in trial.stages]
    lines = [json.loads(line) for log in logs for line in log.splitlines()]
    steps = [line for line in lines if line["step"] > TRIAL_STEPS / 3 and "num_tokens" in line]
    return float(sum(line["num_tokens"] / line["tokens_per_second"] for line in steps) / len(steps))


@dataclass(frozen=True)
class Strikes:
    """Fault after fault, each in a life of its own."""

    job: Job
    output: Path
    every: int
    draw: random.Random
    disk: Path | None
    """That can be filled; without it, a full disk is only feigned."""

    def until_it_ends(self) -> Counter[str]:
        """How many there were of each kind."""
        faults: Counter[str] = Counter()
        while (at := self._next()) < len(self.job.stages) * self.job.steps - self.every:
            kind = self.draw.choice(sorted(CODES))
            self._strike(kind, at)
            faults[kind] += 1
        _begin(self.job, self.output).end(0)
        return faults

    def _next(self) -> int:
        """The step of the next fault, over all stages; none of three that are no numbers falls into another stage."""
        saves = self.draw.randint(SAVES_BETWEEN_FAULTS // 2, SAVES_BETWEEN_FAULTS * 3 // 2)
        at = _saved(self.job, self.output) + saves * self.every + self.draw.randrange(self.every)
        return at - 3 if at % self.job.steps >= self.job.steps - 3 else at

    def _strike(self, kind: str, at: int) -> None:
        within = kind in FAULTS and not (kind == "full disk" and self.disk)
        life = _begin(self.job, self.output, *([kind, str(at % self.job.steps)] if within else []))
        if not within:
            _wait(lambda: _saved(self.job, self.output) >= at - self.every, life)
            time.sleep(self.draw.uniform(0, 1))
            if kind == "full disk":
                self._fill_up(life)
            else:
                life.process.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
        life.end(CODES[kind])
        if kind == "damaged checkpoint":
            _damage(_checkpoints(self.job, self.output)[-1], self.draw)

    def _fill_up(self, life: Life) -> None:
        """Until it ends: what it removes makes room again."""
        assert self.disk is not None
        ballast = self.disk / "ballast"
        while life.process.poll() is None:
            fill(ballast)
            time.sleep(0.02)
        ballast.unlink()


def _checkpoints(job: Job, output: Path) -> list[Path]:
    """In the order in which they were made."""
    return [place for stage in job.stages for place in sorted((output / stage / "checkpoints").glob("step-*"))]


def _saved(job: Job, output: Path) -> int:
    """The last step of a checkpoint, over all stages."""
    places = _checkpoints(job, output)
    return job.stages.index(places[-1].parents[1].name) * job.steps + int(places[-1].name[5:]) if places else 0


def _wait(condition: Callable[[], bool], life: Life) -> None:
    while life.process.poll() is None and not condition():
        time.sleep(0.05)


def _damage(place: Path, draw: random.Random) -> None:
    path = draw.choice(sorted(place.iterdir()))
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _seconds_of(output: Path) -> float:
    """From the start of a run to its end, but for the libraries."""
    return (output / "report.md").stat().st_mtime - (output / ".lock").stat().st_ctime


if __name__ == "__main__":
    main()

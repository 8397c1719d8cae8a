"""S4, S5: full disks and disks that do not answer."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import disks
from .disks import MIB
from .hits import SAVE, replace
from .job import times, write_job
from .runner import finish

pytestmark = pytest.mark.timeout(7200)

ENOUGH = 64 * MIB


@contextmanager
def small_disk(place, size):
    """The test is skipped where none may be mounted."""
    with disks.small_disk(place, size) as disk:
        if disk is None:
            pytest.skip("file systems cannot be mounted here")
        yield disk


@dataclass(frozen=True)
class Filling:
    """Somebody else fills the disk, but for a little, at a save."""

    disk: Path
    call: int
    left: int

    def __call__(self) -> None:
        def filled(write):
            calls = 0

            def writing(*args, **options):
                nonlocal calls
                calls += 1
                if calls == self.call:
                    room = shutil.disk_usage(self.disk).free - self.left
                    (self.disk / "others").write_bytes(bytes(max(0, room)))
                return write(*args, **options)

            return writing

        replace(SAVE, filled)


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """A job whose checkpoints are of some size."""
    folder = tmp_path_factory.mktemp("heavy")
    job = write_job(folder / "job", model="", steps=6, alone=True, shape={"hidden_size": 256, "intermediate_size": 512})
    finish(job, folder / "straight")
    return job, job.result(folder / "straight"), folder


def test_s4_a_disk_that_is_too_small_is_refused_before_the_start(heavy, tmp_path, tell):
    """Below what two checkpoints and the result take, always; with what was asked for, it ends well."""
    job, expected, folder = heavy
    one = sum(path.stat().st_size for path in (folder / "straight/sft/checkpoints/step-00000006").iterdir())
    result = sum(path.stat().st_size for path in (folder / "straight/sft/model").iterdir())
    count, good = times(4, 25), 0
    for number in range(count):
        size = int((0.2 + number * 6 / count) * one) + result
        with small_disk(tmp_path / f"disk-{number}", size) as disk:
            going = finish_any(job, disk / "run")
            told = "bytes) more, and" in going[1] and "bytes) free" in going[1] and going[0] == 4
            good += told if size < 2 * one + result else told or (going[0] == 0 and job.result(disk / "run") == expected)
            assert "Traceback" not in going[1]
    tell("S4", good, count, "sizes before the start")


def test_s4_a_disk_that_fills_up_in_the_middle_does_no_harm(heavy, tmp_path, tell):
    job, expected, _ = heavy
    count, draw, good = times(3, 25), random.Random(4), 0
    for number in range(count):
        with small_disk(tmp_path / f"disk-{number}", ENOUGH) as disk:
            filling = Filling(disk, draw.randint(2, 6), draw.randrange(0, 3 * MIB))
            code, said = finish_any(job, disk / "run", prepare=filling)
            kept = list(disk.glob("run/sft/checkpoints/step-*"))
            (disk / "others").unlink()
            finish(job, disk / "run")
            ended = code == 4 and "disk full" in said and kept and "Traceback" not in said
            good += (ended or code == 0) and job.result(disk / "run") == expected
    tell("S4", good, count, "filled up in the middle")


EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "os.truncate", "os.utime"}
ERRORS = (errno.EIO, errno.EROFS, errno.EDQUOT, errno.ESTALE, errno.EMFILE)


@dataclass(frozen=True)
class Failing:
    """The n-th call that touches one of these folders fails; with n = 0, calls are only counted, in a file."""

    roots: tuple[Path, ...]
    number: int
    at: int
    counted: Path | None = None

    def __call__(self) -> None:
        calls = 0
        lock = threading.Lock()
        sync = os.fsync

        def touch() -> None:
            nonlocal calls
            with lock:
                calls += 1
                mine = calls
            if mine == self.at:
                raise OSError(self.number, os.strerror(self.number))

        def hear(event, args):
            if event in EVENTS and args and isinstance(args[0], (str, bytes, os.PathLike)):
                path = os.fsdecode(args[0])
                if any(path.startswith(str(root)) for root in self.roots) and path != str(self.counted):
                    touch()

        def synced(descriptor):
            touch()
            sync(descriptor)

        os.fsync = synced
        sys.addaudithook(hear)
        if self.counted is not None:
            leave = os._exit

            def leaving(code):
                self.counted.write_text(str(calls))
                leave(code)

            os._exit = leaving


def test_s5_disks_that_do_not_answer(job, straight, tmp_path, tell):
    counted = tmp_path / "counted"
    roots = (tmp_path / "run", tmp_path / "cache")
    finish(job, roots[0], prepare=Failing(roots, 0, 0, counted), cache=roots[1])
    calls = int(counted.read_text())
    count, draw, good, met = times(3, 100), random.Random(5), 0, 0
    for trial in range(count):
        for root in roots:
            shutil.rmtree(root)
        number, at = ERRORS[trial % len(ERRORS)], draw.randint(1, calls)
        code, said = finish_any(job, roots[0], prepare=Failing(roots, number, at), cache=roots[1])
        met += code != 0
        finish(job, roots[0], cache=roots[1])
        whole = code in (0, 1, 4) and "Traceback" not in said and job.result(roots[0]) == straight.result
        if not whole:
            print(f"{os.strerror(number)} at {at}: exit {code}\n{said}")  # noqa: T201  shown where it fails
        good += whole
    tell("S5", good, count, f"{met} of them ended the run, among {calls} calls")


def finish_any(job, output, **options):
    """The exit code, whatever it is, and what was said."""
    from .runner import start

    going = start(job, output, **options)
    return going.end(), going.said

"""One job, run once without a fault, that everything else is compared with; and where figures are noted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .job import Job, full, write_job
from .runner import finish


@dataclass(frozen=True)
class Straight:
    """A run that nothing interrupted."""

    output: Path
    result: dict[str, Any]
    seconds: float


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def straight(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    folder = tmp_path_factory.mktemp("straight")
    finish(job, folder / "warm", cache=folder / "warm-cache")
    begun = time.monotonic()
    finish(job, folder / "run", cache=folder / "cache")
    seconds = time.monotonic() - begun
    result = job.result(folder / "run")
    assert job.result(folder / "warm") == result, "two runs that nothing interrupted are the same"
    return Straight(folder / "run", result, seconds)


@pytest.fixture
def tell() -> Callable[[str, int, int, str], None]:
    """Note how many of how many were survived, for the table."""

    def note(label: str, survived: int, of: int, remark: str = "") -> None:
        place = os.environ.get("ZKIT_FAULTS_RESULTS")
        if place and full():
            with Path(place).open("a") as file:
                file.write(json.dumps({"label": label, "survived": survived, "of": of, "remark": remark}) + "\n")
        assert survived == of, f"{label}: {survived} of {of} {remark}"

    return note

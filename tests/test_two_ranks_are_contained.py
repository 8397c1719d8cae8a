"""A whole `zkit run` on two ranks, with nothing but loopback: it ends, listens there only, and tells no secret."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from contained import CANARIES, ROOT, arguments, can_go_apart, environment, files_left, write_inputs

pytestmark = pytest.mark.skipif(not can_go_apart(), reason="the system lets nobody take the network away")
LISTENS, LOOPBACK = "0A", ("0100007F", "00000000000000000000000001000000")
"""As in `/proc/net/tcp`."""


@dataclass(frozen=True)
class Ended:
    folder: Path
    code: int
    said: str
    listened: set[str]
    """The addresses, each with its port."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("contained")
    write_inputs(folder)
    command = [sys.executable, "-m", "zephyr_kit", *arguments(folder), "--devices", "2"]
    apart = ["unshare", "-n", sys.executable, str(ROOT / "tests" / "on_loopback.py")]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen([*apart, *command], env=environment(folder), cwd=folder, stdout=said, stderr=said)
        listened: set[str] = set()
        until = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < until:
            listened |= listening(process.pid)
            time.sleep(0.02)
        process.kill()
    return Ended(folder, process.wait(), (folder / "said").read_text(), listened)


def listening(pid: int) -> set[str]:
    """Where anything listens in the network of a process, as long as there is one."""
    try:
        return _listening(pid)
    except OSError:
        return set()


def _listening(pid: int) -> set[str]:
    if Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
        return set()  # not apart yet
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return {words[1] for words in lines if words[3] == LISTENS}


def test_it_ends_without_a_network(ended: Ended) -> None:
    assert ended.code == 0, ended.said
    assert "2 of them" in ended.said


def test_all_that_listens_listens_on_loopback(ended: Ended) -> None:
    assert len(ended.listened) >= 2, "the meeting place, and each rank for the other"
    assert {address.partition(":")[0] for address in ended.listened} <= set(LOOPBACK)


def test_no_secret_is_in_anything_that_ranks_say_or_leave(ended: Ended) -> None:
    files = list(files_left(ended.folder))
    assert any("logs" in path.parts for path in files)
    for canary in CANARIES.values():
        assert canary not in ended.said
        assert [path for path in files if canary.encode() in path.read_bytes()] == []

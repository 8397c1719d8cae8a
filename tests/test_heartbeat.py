"""Who has started ranks takes none for frozen that beats, whatever any clock says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zephyr_kit import heartbeat
from zephyr_kit.heartbeat import Heart, Listener, Signs


def test_silence_is_measured_by_a_clock_that_nobody_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now)
    listener, signs = Listener(), Signs(tmp_path, 3)
    assert listener.silent_for(signs) == 0.0, "before the first beat"
    for by_the_disk in (3600, 7200, 60):  # far behind this machine's time, and set forth and back
        Heart(signs).took("sft", 1)
        os.utime(signs.beat, (by_the_disk, by_the_disk))
        assert listener.silent_for(signs) == 0.0
        now += 20.0
        assert listener.silent_for(signs) == 20.0
    now += 20.0
    assert listener.silent_for(signs) == 40.0

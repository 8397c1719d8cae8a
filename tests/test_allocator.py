"""`zkit run` begins anew with an allocator that suits tensors, and leaves the environment as it was."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys

import pytest

from zephyr_kit import garbage
from zephyr_kit.cli.allocator import BEFORE, GROWING, NAME, OF_TORCH, SETTINGS, let_segments_grow
from zephyr_kit.devices import give_back_memory

REPORT = """
import json, os, sys
from pathlib import Path
from zephyr_kit.cli.allocator import begin_anew

begin_anew()
# As glibc leaves it: cut at each colon.
began = ":".join(Path("/proc/self/environ").read_text().split("\\0"))
print(json.dumps([began, os.environ.get("GLIBC_TUNABLES"), "ZKIT_GLIBC_TUNABLES" in os.environ, sys.argv[1:]]))
"""
OWN = "glibc.malloc.arena_max=2"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings are Linux's")
@pytest.mark.parametrize("own", [None, OWN])
def test_the_process_has_the_settings_and_those_it_starts_have_what_was_there(own):
    environment = {name: value for name, value in os.environ.items() if name not in (NAME, BEFORE)} | ({NAME: own} if own else {})
    told = subprocess.run(
        [sys.executable, "-c", REPORT, "run", "a b"], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    began, *rest = json.loads(told.stdout)
    assert f"{NAME}={SETTINGS}:{own or ''}" in began
    assert rest == [own, False, ["run", "a b"]]


@pytest.mark.parametrize("own", [None, *OF_TORCH])
def test_segments_of_gpu_memory_grow_unless_the_user_says_otherwise(monkeypatch, own):
    for name in OF_TORCH:
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv(own, "max_split_size_mb:512")
    let_segments_grow()
    assert os.environ.get(OF_TORCH[0]) == {None: GROWING, OF_TORCH[0]: "max_split_size_mb:512"}.get(own)


def test_garbage_is_looked_for_as_usual_when_models_come() -> None:
    garbage.look_seldom()
    try:
        assert gc.get_threshold() != garbage.USUAL
        give_back_memory()
        assert gc.get_threshold() == garbage.USUAL
    finally:
        garbage.look_as_usual()

"""A whole `zkit run`, in a process of its own: what it opens, starts, says and leaves behind."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from contained import CANARIES, ROOT, TEMPLATE, arguments, can_go_apart, environment, files_left, write_inputs


class Done:
    """A run, and all that it left."""

    def __init__(self, folder: Path, finished: subprocess.CompletedProcess[str]) -> None:
        self.folder, self.finished = folder, finished
        self.heard: dict[str, list[Any]] = json.loads((folder / "heard.json").read_text())

    def files(self) -> list[Path]:
        return list(files_left(self.folder))


def run(folder: Path, *changes: str, answers: str = "") -> Done:
    write_inputs(folder)
    command = [sys.executable, "-P", str(ROOT / "tests" / "audited.py"), str(folder / "heard.json"), *arguments(folder, *changes)]
    # No network at all, where the system lets us take it away; nothing in the preset needs one.
    apart = ["unshare", "-n"] if can_go_apart() else []
    how = {"env": environment(folder), "cwd": folder, "input": answers, "text": True, "capture_output": True, "timeout": 200}
    finished = subprocess.run([*apart, *command], check=False, **how)
    return Done(folder, finished)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    one = run(tmp_path_factory.mktemp("contained"), answers="y\n" * 99)
    assert one.finished.returncode == 0, one.finished.stderr
    return one


def test_nothing_is_unpickled(done: Done) -> None:
    assert [heard for heard in done.heard["pickle.find_class"] if any(_is_ours(Path(file)) for file in heard[1:])] == []


def test_only_files_of_the_environment_are_run(done: Done) -> None:
    places = [ROOT, Path(sysconfig.get_path("stdlib")), *(Path(place) for place in sys.path if place)]
    files = [Path(name) for name in done.heard["exec"] if not name.startswith("<")]
    assert [file for file in files if not any(file.is_relative_to(place) for place in places)] == []


def test_no_shell_is_started_and_no_other_program_but_the_child_for_templates(done: Done) -> None:
    assert done.heard["os.system"] == done.heard["os.exec"] == []
    ours = [heard[0] for heard in done.heard["subprocess.Popen"] if any(_is_ours(Path(file)) for file in heard[1:] if "torch" not in file)]
    assert [started for started in ours if not any(known in started for known in PROGRAMS)] == []
    assert any("template_child.py" in started for started in ours)
    assert not [started for started in ours if "/bin/sh" in started or "-c'" in started]


def test_nothing_is_asked_of_the_terminal(done: Done) -> None:
    assert done.heard["builtins.input"] == []


def test_no_connection_is_made_and_nothing_listens(done: Done) -> None:
    assert done.heard["socket.connect"] == done.heard["socket.bind"] == []


PROGRAMS = ("template_child.py", "ldconfig", "'uname'")
"""The child for templates; and what Python's own library asks of the system's name and libraries."""
PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


def test_the_folder_of_a_run_holds_no_pickle(done: Done) -> None:
    found = done.files()
    known = {".safetensors", ".json", ".jsonl", ".toml", ".md", ".html", ".jinja", ""}
    assert {path.suffix for path in found if path.is_relative_to(done.folder / "run")} <= known
    assert len([path for path in found if path.suffix == ".safetensors"]) >= 4
    heads = {path: path.read_bytes()[:9] for path in found}
    assert [path for path, head in heads.items() if head.startswith((*PICKLES, b"PK\x03\x04", b"(dp", b"ccopy_reg"))] == []


def test_no_secret_of_the_environment_is_in_anything_that_it_says_or_leaves(done: Done) -> None:
    said = done.finished.stdout + done.finished.stderr
    assert len(CANARIES) == 20
    for canary in CANARIES.values():
        assert canary not in said
        assert [path for path in done.files() if canary.encode() in path.read_bytes()] == []


def test_the_template_is_in_the_record_of_the_run(done: Done) -> None:
    digest = hashlib.sha256(TEMPLATE.encode()).hexdigest()
    for stage in ("sft", "dpo"):
        assert json.loads((done.folder / "run" / stage / "data.json").read_text())["template"] == digest


def test_a_secret_on_the_command_line_is_refused_before_it_is_written(tmp_path: Path) -> None:
    secret = CANARIES["HF_TOKEN"]
    one = run(tmp_path, f'description="{secret}"')
    assert one.finished.returncode == 2
    assert "holds the value of the environment variable HF_TOKEN" in one.finished.stderr
    assert secret not in one.finished.stderr + one.finished.stdout
    assert not (tmp_path / "run").exists()


def _is_ours(file: Path) -> bool:
    return file.is_relative_to(ROOT / "zephyr_kit") or file.is_relative_to(ROOT / "plugins")

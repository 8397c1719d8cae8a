"""A whole `zkit run`, in a process of its own: what it opens, starts, says and leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from tiny import write_model

ROOT = Path(__file__).parents[1]
PRESET = """
name = "contained"
seed = 1

[model]
use = "mistral"
weights = "{weights}"
dtype = "float32"
template = "{template}"

[stages.sft]
objective = "sft"
data = [{{ use = "jsonl", path = "{sft}" }}]
held_out = [{{ use = "jsonl", path = "{sft}" }}]
max_length = 128
train = {{ steps = 2, examples_per_step = 2, learning_rate = 1e-3, checkpoint_every = 1 }}

[stages.dpo]
objective = "dpo"
data = [{{ use = "jsonl", path = "{dpo}" }}]
max_length = 128
model.lora = {{ rank = 2 }}
train = {{ steps = 2, examples_per_step = 2, learning_rate = 1e-3, checkpoint_every = 1 }}
"""
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
NAMES = (
    *("HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "WANDB_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("DB_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AZURE_CLIENT_SECRET", "SLACK_BOT_TOKEN", "PGPASSWORD"),
    *("NPM_TOKEN", "MY_SECRET", "SSH_PASSPHRASE", "REGISTRY_AUTH", "GOOGLE_CREDENTIALS", "SIGNING_KEY", "my_api_key"),
)
CANARIES = {name: f"canary/{number:02d}+aZ9=x" for number, name in enumerate(NAMES)}


class Done:
    """A run, and all that it left."""

    def __init__(self, folder: Path, finished: subprocess.CompletedProcess[str]) -> None:
        self.folder, self.finished = folder, finished
        self.heard: dict[str, list[Any]] = json.loads((folder / "heard.json").read_text())

    def files(self) -> list[Path]:
        return [path for place in ("run", "cache") for path in (self.folder / place).rglob("*") if path.is_file()]


def run(folder: Path, *changes: str, answers: str = "") -> Done:
    sft = [{"messages": [{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": f"So {n}."}]} for n in range(6)]
    dpo = [{"prompt": f"Why {n}?", "chosen": f"So {n}.", "rejected": f"No {n}."} for n in range(6)]
    sft.append({"messages": [{"role": "user", "content": "Why?"}]})
    for name, rows in (("sft", sft), ("dpo", dpo)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_model(folder / "weights")
    (folder / "own.jinja").write_text(TEMPLATE)
    facts = {"weights": folder / "weights", "template": folder / "own.jinja", "sft": folder / "sft.jsonl", "dpo": folder / "dpo.jsonl"}
    (folder / "preset.toml").write_text(PRESET.format(**facts))
    places = {"ZKIT_CACHE": folder / "cache", "HF_HOME": folder / "hf", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")])}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH", "OMP_NUM_THREADS") if name in os.environ}
    environment = {**kept, **{name: str(place) for name, place in places.items()}, **CANARIES}
    command = [sys.executable, "-P", str(ROOT / "tests" / "audited.py"), str(folder / "heard.json"), "run", str(folder / "preset.toml")]
    options = ["--output", str(folder / "run"), "--device", "cpu", "--set", "stages.sft.bad_rows=0.5"]
    sets = [word for change in changes for word in ("--set", change)]
    # No network at all, where the system lets us take it away; nothing in the preset needs one.
    apart = ["unshare", "-n"] if _can_go_apart() else []
    how = {"env": environment, "cwd": folder, "input": answers, "text": True, "capture_output": True, "timeout": 200}
    finished = subprocess.run([*apart, *command, *options, *sets], check=False, **how)
    return Done(folder, finished)


def _can_go_apart() -> bool:
    found = shutil.which("unshare")
    return found is not None and subprocess.run([found, "-n", "true"], capture_output=True, check=False).returncode == 0


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

"""`zkit run`, killed and run again, ends as if nothing had happened; and runs again only what must be."""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import forked
import pytest
from forked import Forked
from tiny import write_model

pytestmark = pytest.mark.usefixtures("rehearsed_once")

STEPS, LOOKS = 40, 8
PRESET = """
name = "tiny"
seed = 3

[model]
use = "mistral"
weights = "{folder}/model"
dtype = "float32"
template = "zephyr"
lora = {{ rank = 4, alpha = 8, dropout = 0.1 }}

[stages.sft]
objective = "sft"
data = [{{ use = "jsonl", path = "{folder}/chat.jsonl" }}]
held_out = [{{ use = "jsonl", path = "{folder}/chat.jsonl", limit = 5 }}]
max_length = 160
train = {{ steps = 40, examples_per_step = 4, learning_rate = 1e-2, checkpoint_every = 7, tokens_per_batch = 256, held_out_every = 5 }}

[stages.dpo]
objective = {{ use = "dpo", beta = 0.1 }}
data = [{{ use = "jsonl", path = "{folder}/pairs.jsonl" }}]
max_length = 160
model.lora = {{ rank = 2, dropout = 0.1 }}

[stages.dpo.train]
steps = 40
examples_per_step = 4
learning_rate = 1e-2
checkpoint_every = 7
tokens_per_batch = 256
optimizer = "adamw_8bit"
"""


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset of two stages, with its model and its data beside it."""
    folder = tmp_path_factory.mktemp("preset")
    write_model(folder / "model")
    draw = random.Random(0)

    def say(count: int) -> str:
        return " ".join(draw.choices(["sun", "moon", "star", "tree", "river", "stone", "bird", "fish"], k=count))

    chat = [{"messages": [{"role": "user", "content": say(4)}, {"role": "assistant", "content": say(6)}]} for _ in range(30)]
    pairs = [{"prompt": say(4), "chosen": say(5), "rejected": say(7)} for _ in range(30)]
    for name, rows in (("chat", chat), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "preset.toml").write_text(PRESET.format(folder=folder))
    return folder / "preset.toml"


def start(preset: Path, output: Path) -> Forked:
    return forked.start(["run", str(preset), "--output", str(output)], output.with_name(f"{output.name}.log"))


def finish(process: Forked) -> str:
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def straight(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    output = tmp_path_factory.mktemp("straight") / "run"
    finish(start(preset, output))
    return output


def run_here(preset: Path, output: Path, *changes: str, code: int = 0, accept: str = "") -> str:
    """`zkit run` in this process, which has imported torch already."""
    from zephyr_kit.cli import main

    sets = [part for change in changes for part in ("--set", change)] + (["--accept", accept] if accept else [])
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as ended:
        main(["run", str(preset), "--output", str(output), *sets])
    assert ended.value.code == code, said.getvalue()
    return said.getvalue()


def lines(output: Path, stage: str) -> list[dict[str, Any]]:
    path = output / stage / "metrics.jsonl"
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in ("memory", "tokens_per_second")} for line in whole]


def count_lines(output: Path) -> int:
    found = 0
    for path in output.glob("*/metrics.jsonl"):
        try:
            found += path.read_bytes().count(b"\n")
        except FileNotFoundError:  # replaced at this moment
            continue
    return found


def kill_at(process: Forked, output: Path, number: int) -> bool:
    """Kill the run as soon as it has written so many lines; False if it ended before."""
    while process.poll() is None:
        if count_lines(output) >= number:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=60)
            return process.returncode == -signal.SIGKILL
        time.sleep(0.001)
    process.communicate()
    return False


def kills() -> Iterator[int]:
    """Lines at which to kill: early, in the middle, and late; the same each time."""
    draw = random.Random(20261121)
    for low, high in ((1, 30), (31, STEPS + LOOKS), (STEPS + LOOKS + 1, 2 * STEPS + LOOKS - 8)):
        yield draw.randint(low, high)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_killed_at_random_steps_it_ends_the_same_to_the_bit(preset: Path, straight: Path, tmp_path: Path) -> None:
    output, killed = tmp_path / "run", 0
    for number in kills():
        killed += kill_at(start(preset, output), output, number)
    said = finish(start(preset, output))
    print(f"killed {killed} times; then: {said}")  # noqa: T201  shown by pytest -rP
    assert killed == 3
    assert "going on after step" in said
    for stage in ("sft", "dpo"):
        assert content(output / stage / "model") == content(straight / stage / "model")
        assert lines(output, stage) == lines(straight, stage)
        for name in ("state.safetensors", "state.json"):
            place = f"{stage}/checkpoints/step-{STEPS:08d}/{name}"
            assert (output / place).read_bytes() == (straight / place).read_bytes()
    worked_on = [note["stage"] for note in json.loads((output / "run.json").read_text())]
    assert len(worked_on) == 5, "four starts, one of which went on from sft to dpo"
    assert worked_on == sorted(worked_on, reverse=True)


def test_the_metrics_are_a_line_for_each_step(straight: Path) -> None:
    for stage, looks in (("sft", LOOKS), ("dpo", 0)):
        found = lines(straight, stage)
        assert [line["step"] for line in found if "loss" in line] == list(range(1, STEPS + 1))
        assert [line["step"] for line in found if "held_out/loss" in line] == [5 * (look + 1) for look in range(looks)]


@pytest.fixture
def finished(straight: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    return Path(shutil.copytree(straight, tmp_path / "run"))


def test_run_again_when_finished_it_changes_nothing_and_says_so(preset: Path, straight: Path) -> None:
    before, touched = content(straight), times(straight)
    said = run_here(preset, straight)
    assert "stage sft: done before, nothing changed" in said
    assert "stage dpo: done before, nothing changed" in said
    assert content(straight) == before
    assert times(straight) == touched


def test_a_changed_beta_runs_its_own_stage_again_and_says_why(preset: Path, straight: Path, finished: Path) -> None:
    before = content(finished)
    refused = run_here(preset, finished, "stages.dpo.objective.beta=0.3", code=3)
    assert "stages.dpo.objective.beta  0.1" in refused
    assert "--accept stages.dpo.objective.beta" in refused
    assert content(finished) == before
    said = run_here(preset, finished, "stages.dpo.objective.beta=0.3", accept="stages.dpo.objective.beta")
    assert "stage sft: done before, nothing changed" in said
    assert "stage dpo runs again: stages.dpo.objective.beta: was 0.1, is 0.3" in said
    noted = [note for note in json.loads((finished / "run.json").read_text()) if "accepted" in note]
    assert noted == [{"stage": "dpo", "accepted": "stages.dpo.objective.beta", "was": "0.1", "is": "0.3"}]
    after = content(finished)
    for name, data in before.items():
        if name.startswith("sft/"):
            assert after[name] == data
        if name.startswith("dpo/"):
            assert after[f"superseded/dpo-1/{name.removeprefix('dpo/')}"] == data
    assert after["dpo/model/adapter_model.safetensors"] != before["dpo/model/adapter_model.safetensors"]
    assert [line["step"] for line in lines(finished, "dpo")] == list(range(1, STEPS + 1))
    # And back again: the first beta's result is taken from the shelf.
    said = run_here(preset, finished, accept="stages.dpo")
    assert "stage dpo is taken back from superseded/, where the same one was" in said
    assert content(finished / "dpo") == content(straight / "dpo")
    assert {path.name for path in (finished / "superseded").iterdir()} == {"dpo-2"}


def test_of_rows_that_have_changed_files_and_numbers_are_told(preset: Path, finished: Path, tmp_path: Path) -> None:
    chat = preset.with_name("chat.jsonl")
    before = chat.read_bytes()
    try:
        chat.write_bytes(before + before.splitlines(keepends=True)[0])
        refused = run_here(preset, finished, code=3)
    finally:
        chat.write_bytes(before)
    told = next(line for line in refused.splitlines() if line.startswith("  stages.sft.data[0]"))
    assert re.fullmatch(rf"  stages\.sft\.data\[0\] +30 rows +31 rows: {re.escape(str(chat))} has changed", told)
    more = tmp_path / "more.jsonl"
    more.write_bytes(before + before)
    refused = run_here(preset, finished, f"stages.sft.data[0].path={more}", code=3)
    assert f"60 rows: {more} is new, {chat} is gone" in refused


@pytest.mark.parametrize("damage", ["remove the folder", "remove a file", "flip a bit"])
def test_a_damaged_result_is_made_again_from_its_last_checkpoint(preset: Path, straight: Path, finished: Path, damage: str) -> None:
    model = finished / "dpo" / "model"
    weights = model / "adapter_model.safetensors"
    if damage == "remove the folder":
        shutil.rmtree(model)
    elif damage == "remove a file":
        weights.unlink()
    else:
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    said = run_here(preset, finished)
    assert "is made again, from its last checkpoint" in said
    assert f"going on after step {STEPS}" in said
    assert content(model) == content(straight / "dpo" / "model")


def test_a_result_is_not_set_aside_for_data_that_is_refused(preset: Path, finished: Path) -> None:
    before = content(finished)
    assert "rows are bad" in run_here(preset, finished, "stages.sft.objective.use=dpo", code=6, accept="all")
    after = content(finished)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"sft.data.quarantine.jsonl"}


def no_large_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_full_disk_is_told_in_a_line(preset: Path, tmp_path: Path) -> None:
    ended = forked.start(["run", str(preset), "--output", str(tmp_path / "run")], tmp_path / "log", prepare=no_large_files)
    said, _ = ended.communicate(timeout=120)
    assert ended.returncode == 4, said
    assert "Traceback" not in said
    assert "file too large" in said
    assert "the same command goes on" in said


def test_a_changed_first_stage_runs_all_again(preset: Path, finished: Path) -> None:
    changes = ("stages.sft.train.learning_rate=2e-2", "stages.sft.train.steps=3", "stages.dpo.train.steps=2")
    run_here(preset, finished, *changes, code=3, accept="stages.sft.train")
    said = run_here(preset, finished, *changes, accept="all")
    assert "stage sft runs again: stages.sft.train.learning_rate: was 0.01, is 0.02" in said
    assert {path.name for path in (finished / "superseded").iterdir()} == {"sft-1", "dpo-1"}
    assert "done before" in run_here(preset, finished, *changes, accept="all"), "accepted once"


@pytest.mark.parametrize("change", ["tokens_per_batch=512", "checkpoint_every=3", "share_prompts=false", "keep_checkpoints=1"])
def test_a_change_of_what_the_machine_is_given_runs_nothing_again(preset: Path, finished: Path, change: str) -> None:
    said = run_here(preset, finished, f"stages.sft.train.{change}", f"stages.dpo.train.{change}")
    assert said.count("done before, nothing changed") == 2
    assert "runs again" not in said
    assert not (finished / "superseded").exists()


def test_a_damaged_checkpoint_is_passed_over_with_a_remark(preset: Path, straight: Path, finished: Path) -> None:
    """As if killed at the end of the last stage, with the newest checkpoint torn."""
    (finished / "dpo/done.json").unlink()
    shutil.rmtree(finished / "dpo/model")
    torn = finished / f"dpo/checkpoints/step-{STEPS:08d}/state.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    said = run_here(preset, finished)
    assert f"checkpoint step-{STEPS:08d} is not used: state.safetensors does not match its checksum" in said
    assert "going on after step 35" in said
    assert content(finished / "dpo/model") == content(straight / "dpo/model")
    assert lines(finished, "dpo") == lines(straight, "dpo")


def test_two_at_once_are_refused(preset: Path, finished: Path) -> None:
    from zephyr_kit.runs import RunError, RunFolder

    with RunFolder(finished).locked(), pytest.raises(RunError, match="another zkit works in this folder"), RunFolder(finished).locked():
        pass

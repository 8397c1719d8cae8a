"""A distillation, a feedback stage and their trainings, with a real server as teacher, completer and judge: killed, restarted, faulty."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import forked
import pytest
from forked import Forked
from loopback import Faults, Loopback, SmallModel

SEEDS, PROMPTS, SAMPLES, KILLS = 6, 8, 3, 5
FAULTS = {"limited": 0.12, "broken": 0.05, "slow": 0.1, "garbled": 0.05, "truncated": 0.04, "closed": 0.04, "nonsense": 0.08}
PRESET = """
name = "over-http"
seed = 3

[model]
use = "mistral"
weights = "{weights}"
dtype = "float32"
template = "zephyr"

[stages.distill]
seeds = [{{ use = "jsonl", path = "{folder}/seeds.jsonl", format = "prompt" }}]
exchanges = 2
unfinished = "keep"
held_out = 1

[stages.distill.teacher]
use = "openai"
model = "loopback"
base_url = "{url}"
concurrency = 3
timeout = 20.0
retries = 8
backoff = 0.02
temperature = 0.8
max_new_tokens = 12

[stages.sft]
objective = "sft"
data = [{{ use = "stage", name = "distill" }}]
held_out = [{{ use = "stage", name = "distill", part = "held_out" }}]
max_length = 256
train = {{ steps = 3, examples_per_step = 2, learning_rate = 1e-3 }}

[stages.feedback]
prompts = [{{ use = "jsonl", path = "{folder}/prompts.jsonl", format = "prompt" }}]
completers = [
  {{ use = "own", max_new_tokens = 10, temperature = 1.0 }},
  {{ use = "openai", model = "loopback", base_url = "{url}", retries = 8, backoff = 0.02, samples = 2, max_new_tokens = 10 }},
]
unfinished = "keep"
binarise = {{ rule = "best_random", ties = "keep" }}
check = 0.5
max_failed = 0.2

[stages.feedback.judge]
use = "openai"
model = "loopback"
base_url = "{url}"
concurrency = 3
timeout = 20.0
retries = 8
backoff = 0.02

[stages.dpo]
objective = {{ use = "dpo", beta = 0.1 }}
data = [{{ use = "stage", name = "feedback" }}]
max_length = 256
train = {{ steps = 3, examples_per_step = 2, learning_rate = 1e-4 }}
"""


@pytest.fixture
def server(shared: Path):
    with Loopback(SmallModel(shared / "models" / "stories260k"), faults=Faults(FAULTS, seed=1)) as started:
        yield started


@pytest.fixture
def preset(tmp_path: Path, shared: Path, server: Loopback) -> Path:
    for name, count in (("seeds", SEEDS), ("prompts", PROMPTS)):
        rows = [{"prompt": f"Tell me {name} number {number} about a cat and a dog."} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = PRESET.format(folder=tmp_path, url=server.base_url, weights=shared / "models" / "stories260k")
    (tmp_path / "preset.toml").write_text(text)
    return tmp_path / "preset.toml"


def start(preset: Path, cache: Path) -> Forked:
    arguments = ["run", str(preset), "--output", str(preset.parent / "run")]
    return forked.start(arguments, preset.with_name("log"), environment={**os.environ, "ZKIT_CACHE": str(cache)})


def end(process: Forked) -> str:
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 0, said
    return said


def wait_for_answers(server: Loopback, count: int, process: Forked) -> None:
    goal = sum(server.answered.values()) + count
    while sum(server.answered.values()) < goal:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_killed_and_faulty_it_ends_with_everything_accounted_for_and_asks_nothing_twice(preset, server, tmp_path):
    draw, cache = random.Random(5), tmp_path / "cache"
    for number in range(KILLS):
        process = start(preset, cache)
        wait_for_answers(server, draw.randrange(3, 14), process)
        if number % 2:  # the server goes and comes back while it is asked
            server.stop()
            time.sleep(0.3)
            server.start()
            wait_for_answers(server, 2, process)
        process.kill()
        process.communicate()
    end(start(preset, cache))
    run = tmp_path / "run"
    check_accounts(run)
    assert set(server.struck) >= {"limited", "broken", "slow", "nonsense"}
    # What was under way when a process was killed is asked again, and nothing else.
    again = sum(count - 1 for count in server.answered.values())
    assert again <= KILLS * 8
    assert again < len(server.answered) / 2
    asked = sum(server.asked.values())
    said = end(start(preset, cache))
    assert sum(server.asked.values()) == asked
    assert said.count("done before, nothing changed") == 4
    # Another folder, the same preset: whatever was asked is known.
    (run / "distill").rename(tmp_path / "distill")
    before = rows(tmp_path / "distill" / "data" / "train.jsonl")
    end(start(preset, cache))
    assert sum(server.asked.values()) == asked
    assert rows(run / "distill" / "data" / "train.jsonl") == before
    # What has asked needs no server any more.
    server.stop()
    try:
        assert end(start(preset, cache)).count("done before, nothing changed") == 4
    finally:
        server.start()


def check_accounts(run: Path) -> None:
    distilled = json.loads((run / "distill" / "data.json").read_text())
    assert distilled["rows"]["read"] == distilled["seeds"] == SEEDS == sum(distilled["ends"].values())
    assert distilled["dialogues"] + distilled["lost"] == SEEDS
    assert len(rows(run / "distill" / "data" / "dialogues.jsonl")) == SEEDS
    told = json.loads((run / "feedback" / "data.json").read_text())
    assert told["rows"]["read"] == told["prompts"] == PROMPTS == told["paired"] + told["unpaired"]
    assert told["replies"] == PROMPTS * SAMPLES == sum(told["fates"].values())
    feedback = rows(run / "feedback" / "data" / "feedback.jsonl")
    assert len(feedback) == PROMPTS
    for row in feedback:
        assert [reply["by"]["use"] for reply in row["replies"]] == ["own", "openai", "openai"]
        judgement = row["judgement"]
        if judgement is not None and "failure" not in judgement:
            assert set(judgement["aspects"]) == {"instruction_following", "honesty", "truthfulness", "helpfulness"}
            assert all(1 <= score <= 10 for score in judgement["scores"])
    (itself,) = json.loads((run / "feedback" / "agreement.json").read_text())
    assert itself["cases"] >= 1
    assert (run / "dpo" / "model" / "model.safetensors").exists()

"""Real dialogues and real feedback pass filters and binarisation into trainings, and every row is accounted for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_resume import run_here

PRESET = """
name = "real"

[model]
use = "mistral"
weights = "{shared}/models/stories260k"
dtype = "float32"
template = "zephyr"

[[stages.sft.data]]
use = "ultrachat"
path = "{shared}/data/chat_sgd.jsonl.gz"
filters = [
  {{ use = "length", min_words = 40, max_turns = 30 }},
  {{ use = "language", keep = ["en"] }},
  {{ use = "truecase" }},
  {{ use = "disclaimers" }},
  {{ use = "near_duplicates", threshold = 0.6 }},
  {{ use = "decontaminate", against = [
    {{ use = "jsonl", path = "{shared}/data/mt_bench_questions.jsonl.gz", format = "any_text" }},
    {{ use = "jsonl", path = "{shared}/data/math_gsm8k_test.jsonl.gz", format = "any_text" }},
  ] }},
]

[stages.sft]
objective = "sft"
max_length = 512
train = {{ steps = 2, examples_per_step = 4, learning_rate = 1e-3 }}

[[stages.dpo.data]]
use = "ultrafeedback"
path = "{shared}/data/feedback_arena.jsonl.gz"
limit = {limit}
binarise = {{ rule = "{rule}" }}

[stages.dpo]
{objective}
max_length = 512
bad_rows = 0.5
train = {{ steps = 2, examples_per_step = 4, learning_rate = 1e-4 }}
"""
LEFT_OUT = {300: {"blank text": 27, "the same text as another": 3}, 60: {"blank text": 3, "the same text as another": 2}}
"""Of the completions of so many rows."""


def ledger(run: Path, stage: str) -> dict[str, Any]:
    """What `data.json` says, checked row by row against the quarantine."""
    told = json.loads((run / stage / "data.json").read_text("utf-8"))
    assert told["read"] + told["added"] == told["kept"] + told["dropped"] + told["bad"] + told["removed"]
    lines = [json.loads(line) for line in (run / stage / "data.quarantine.jsonl").read_text("utf-8").splitlines()]
    fates = Counter(line["fate"] for line in lines)
    assert fates == +Counter({fate: told[fate] for fate in ("cut", "dropped", "bad", "removed")})
    assert sum(told["reasons"].values()) == len(lines)
    return told


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "objective"), [("best_random", "dpo"), ("best_worst", "ipo"), ("all_pairs", "dpo"), ("best", "sft")])
def test_dialogues_and_feedback_run_through(rule, objective, shared, tmp_path):
    limit = 60 if rule == "all_pairs" else 300  # 300 rows make 24,000 pairs
    # Two steps need no reference scores of all pairs.
    chosen = f'objective = "{objective}"' + ("" if objective == "sft" else '\nreference = "live"')
    (tmp_path / "preset.toml").write_text(PRESET.format(shared=shared, rule=rule, objective=chosen, limit=limit))
    run_here(tmp_path / "preset.toml", tmp_path / "run")
    chats = ledger(tmp_path / "run", "sft")
    assert chats["read"] == 3000
    seen = chats["read"]
    for one in chats["portions"][0]["sieve"]["filters"]:  # each sees what the one before it let pass
        assert one["seen"] == seen
        assert one["removed"] + one["changed"] == sum(one["reasons"].values())
        seen -= one["removed"]
    assert seen == chats["kept"] + chats["dropped"] + chats["bad"]
    pairs = ledger(tmp_path / "run", "dpo")
    assert pairs["read"] == limit
    assert pairs["left_out"] == LEFT_OUT[limit]
    assert (pairs["added"] > 60 * limit) == (rule == "all_pairs")
    assert (tmp_path / "run" / "dpo" / "model" / "model.safetensors").exists()
    assert "near_duplicates" in (tmp_path / "run" / "report.md").read_text("utf-8")

"""Stages that gather, among stages that train: what is redone when something changes, and what is checked before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_resume import run_here
from tiny import write_model

pytestmark = pytest.mark.usefixtures("rehearsed_once")

PRESET = """
name = "gather"
seed = 1

[model]
use = "mistral"
weights = "{folder}/model"
dtype = "float32"
template = "zephyr"

[stages.sft]
objective = "sft"
data = [{{ use = "quickstart", part = "chat", count = 8 }}]
max_length = 1024
train = {{ steps = 2, examples_per_step = 4, learning_rate = 1e-2 }}

[stages.feedback]
prompts = [{{ use = "quickstart", part = "prompt", count = 8 }}]
completers = [{{ use = "own", samples = 3, max_new_tokens = 8 }}]
judge = "quickstart"
binarise = {{ ties = "keep" }}
unfinished = "keep"

[stages.dpo]
objective = "dpo"
data = [{{ use = "stage", name = "feedback" }}]
max_length = 1024
train = {{ steps = 2, examples_per_step = 4, learning_rate = 1e-4 }}
"""


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", max_position_embeddings=1024)
    (tmp_path / "preset.toml").write_text(PRESET.format(folder=tmp_path))
    return tmp_path / "preset.toml"


def requests(run: Path) -> dict[str, int]:
    return json.loads((run / "feedback" / "data.json").read_text())["requests"]


def test_rows_that_will_not_stay_are_not_held_against_the_run(preset, tmp_path):
    gate = "stages.dpo.gate.min_examples=15"
    said = run_here(preset, tmp_path / "run", gate, code=6)
    assert "stages.dpo.data does not pass its gate" in said
    text = preset.read_text().replace('part = "prompt", count = 8', 'part = "prompt", count = 40')
    preset.write_text(text)
    said = run_here(preset, tmp_path / "run", gate, accept="stages.feedback.prompts")
    assert "stage sft: done before" in said
    assert "stage feedback runs again: stages.feedback.prompts[0]: was " in said
    assert "8 pairs" not in said


def test_replies_of_another_model_are_not_taken_for_its_own(preset, tmp_path):
    """Two trainings by one key may end in different bits; here they are made to."""
    preset.write_text(preset.read_text().replace("seed = 1", "seed = 77"))  # no other test knows the answers
    run_here(preset, tmp_path / "one")
    assert requests(tmp_path / "one")["known"] == 0
    run_here(preset, tmp_path / "two")
    assert requests(tmp_path / "two")["known"] == requests(tmp_path / "two")["questions"]
    run_here(preset, tmp_path / "three", "stages.sft.train.tokens_per_batch=300")
    weights = [(tmp_path / run / "sft" / "model" / "model.safetensors").read_bytes() for run in ("one", "two", "three")]
    assert weights[0] == weights[1] != weights[2]
    assert requests(tmp_path / "three")["known"] < 8  # judgements of the same words, if any


def test_a_change_redoes_what_depends_on_it(preset, tmp_path):
    run_here(preset, tmp_path / "run")
    said = run_here(preset, tmp_path / "run")
    assert said.count("done before, nothing changed") == 3
    said = run_here(preset, tmp_path / "run", "stages.feedback.binarise.rule=best_worst", accept="stages.feedback")
    assert requests(tmp_path / "run")["known"] == requests(tmp_path / "run")["questions"]
    assert "stage feedback runs again: stages.feedback.binarise.rule: was best_random, is best_worst" in said
    changes = ("stages.dpo.objective.beta=0.2", "stages.feedback.binarise.rule=best_worst")
    said = run_here(preset, tmp_path / "run", *changes, accept="stages.dpo.objective.beta")
    assert "stage feedback: done before" in said
    assert "stage dpo runs again" in said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "feedback" }', 'name = "feedbak" }', "no stage before it gathers rows under that name; did you mean `feedback`?"),
        ('name = "feedback" }', 'name = "sft" }', '`name` = "sft": no stage before it gathers rows under that name'),
        ('name = "feedback" }', 'name = "feedback", part = "held_out" }', "stages.feedback keeps no rows apart; set its `held_out`"),
        ("samples = 3", "samples = 3, draw = 2", "does not know the key `draw`"),
        ("[stages.feedback]", "[stages.feedback]\ndraw = 7", "`draw` = 7: the completers write only 3 samples for each prompt"),
        ("count = 8 }}]\ncomp", "count = 8, binarise = {} }]\ncomp", "`binarise` in `prompts`: only the prompts are taken of these rows"),
        (
            'name = "feedback" }]',
            'name = "feedback" }]\nheld_out = [{ use = "stage", name = "feedback", binarise = { rule = "best" } }]',
            '`binarise` with rule = "best" gives 1 completion(s), but the objective takes 2',
        ),
        ("[stages.feedback]", "[stages.feedback]\nmodel.dtype = 'bfloat16'", "`model`: only a stage that trains sets keys of [model]"),
    ],
)
def test_a_mistake_is_named(preset, tmp_path, old, new, message):
    text = preset.read_text()
    old = old.replace("}}", "}")
    assert old in text
    preset.write_text(text.replace(old, new))
    assert message in run_here(preset, tmp_path / "run", code=2)


def test_what_changed_is_told_to_the_key(preset, tmp_path):
    run_here(preset, tmp_path / "run")
    preset.write_text(preset.read_text().replace("samples = 3,", "samples = 3, temperature = 0.5,"))
    said = run_here(preset, tmp_path / "run", code=3)
    assert "stages.feedback.writers[0].temperature  1.0" in said
    said = run_here(preset, tmp_path / "run", accept="all")
    assert "stage feedback runs again: stages.feedback.writers[0].temperature: was 1.0, is 0.5;" in said

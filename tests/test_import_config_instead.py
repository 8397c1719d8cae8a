"""`zkit import-config`: what is not carried over, and what then is to be written instead."""

from __future__ import annotations

import re
import tomllib

import pytest
from test_import_config import AXO, DPO, LLAMA, TRL, left, table
from test_import_config_losses import offers, refusal

from zephyr_kit.preset import resolve


@pytest.mark.parametrize(
    ("text", "key", "share"),
    [(AXO, "val_set_size", "0.05"), (LLAMA, "val_size", "0.05"), (TRL, "test_split_size", "0.05"), (AXO, "val_set_size", "500")],
)
def test_rows_that_were_held_out_by_chance_are_told_with_what_to_write(text, key, share, tmp_path):
    read, made = table(tmp_path, f"{text}{key}: {share}\n")
    told = left(made)[key]
    rows = "500 rows" if share == "500" else "0.05 of all rows"
    assert (told.near, told.matters) == ("held_out", True)
    assert told.reason.startswith(f"rows are not drawn for it: put {rows} into a file")
    (stage,) = read["stages"].values()
    written = tomllib.loads(told.reason.split("`")[1])
    assert resolve({**read, "stages": {"sft": {**stage, **written}}}, offers(), file="imported.toml").stages


KTO = {
    "axolotl": (f"{AXO}rl: kto\nrl_beta: 0.2\nkto_desirable_weight: 0.5\n", {"beta": 0.2, "desirable_weight": 0.5}),
    "llama-factory": (LLAMA.replace("stage: sft", "stage: kto") + "kto_rejected_weight: 2.0\n", {"beta": 0.1, "undesirable_weight": 2}),
    "trl by its loss": (f"{DPO}loss_type: kto\n", {"beta": 0.1}),
    "trl by its weights": (f"{TRL}desirable_weight: 1.5\n", {"beta": 0.1, "desirable_weight": 1.5}),
    "trl by its folder": (f"{DPO}output_dir: data/kto-7b\n", {"beta": 0.1}),
    "trl without a point": (f"{DPO}loss_type: apo_zero_unpaired\n", {"beta": 0.1, "reference_point": "zero"}),
}


def pasted(message: str):
    """The objective that a refusal says to write, which must be one."""
    (line,) = re.findall(r"  (objective = \{.*?\})(?:  and|$)", message)
    read = tomllib.loads(line)
    stage = {**read, "data": [{"use": "jsonl", "path": "p"}], "train": {"epochs": 1, "examples_per_step": 1, "learning_rate": 1}}
    resolve({"name": "n", "model": {"use": "mistral", "weights": "w"}, "stages": {"it": stage}}, offers(), file="pasted.toml")
    return read["objective"]


@pytest.mark.parametrize("name", KTO)
def test_kto_is_refused_with_what_to_write(name, tmp_path):
    text, keys = KTO[name]
    message = refusal(tmp_path, text)
    assert "tells of KTO" in message
    assert 'format = "labelled"' in message
    assert pasted(message) == {"use": "kto", **keys}


@pytest.mark.parametrize(
    ("text", "batch", "parts"),
    [
        (f"{DPO}loss_type: [sigmoid, sft]\n", "per_device_train_batch_size", [{"use": "dpo", "beta": 0.1}, {"use": "sft"}]),
        (f"{DPO}rpo_alpha: 0.5\n", "per_device_train_batch_size", [{"use": "dpo", "beta": 0.1}, {"use": "sft", "weight": 0.5}]),
        (f"{AXO}rl: dpo\nrpo_alpha: 0.5\n", "micro_batch_size", [{"use": "dpo", "beta": 0.1}, {"use": "sft", "weight": 0.5}]),
    ],
)
def test_a_mean_over_a_micro_batch_is_refused_with_what_to_write(text, batch, parts, tmp_path):
    message = refusal(tmp_path, text)
    assert f"set `{batch}: 1`" in message
    assert pasted(message) == {"use": "sum", "of": parts}

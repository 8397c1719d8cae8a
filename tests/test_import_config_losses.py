"""`zkit import-config`: a loss becomes the objective that equals it, or the file is refused with the reason."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from oracles.trl_losses import trl_pairs
from test_import_config import AXO, DPO, HANDBOOK, LLAMA, TRL, left, table
from test_objectives_against_trl import apart, mean_over_pairs
from zkit_import.handbook import FORMAT as HANDBOOKS
from zkit_import.losses import LLAMA_FACTORY, Loss
from zkit_import.losses import TRL as TRLS
from zkit_import.said import ConfigError

from zephyr_kit.plugins import Plugins
from zephyr_kit.preset import resolve

ROOT = Path(__file__).parent.parent
PREFS = HANDBOOK.replace("_sft", "_prefs").replace("data/sft", "data/dpo")
FACTORY = LLAMA.replace("stage: sft", "stage: dpo")
APO = """
model_name_or_path: HuggingFaceTB/SmolLM3-3B
dataset_mixture:
  datasets:
    - id: some/preferences
      split: train
learning_rate: 1.0e-6
lr_scheduler_type: cosine_with_min_lr
per_device_train_batch_size: 1
gradient_accumulation_steps: 2
num_train_epochs: 1
max_length: 24576
beta: 0.05
loss_type: apo_zero
"""
"""smollm3's, by its published values."""

SETTINGS = {
    "robust": {"label_smoothing": 0.2},
    "exo_pair": {"label_smoothing": 0.05},
    "discopop": {"discopop_tau": 0.1},
    "sigmoid+ld_alpha": {"ld_alpha": 0.25},
    "sigmoid+f_divergence": {"f_divergence_type": "js_divergence"},
    "sigmoid": {"label_smoothing": 0.3},
}


offers = cache(lambda: Plugins().offers)
COMPARED = sorted({name for name, loss in TRLS.items() if isinstance(loss, Loss)} - {"sft", "sigmoid+reference_free"})


def stage_of(folder: Path, text: str, **options):
    """The one stage there is, by its name; the whole must be a preset."""
    read, made = table(folder, text, **options)
    resolve(read, offers(), file="imported.toml")
    ((name, stage),) = read["stages"].items()
    return name, stage, made


def objective(folder: Path, text: str):
    return stage_of(folder, text)[1]["objective"]


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        table(folder, text)
    return str(caught.value).split(", ", 1)[1]


@pytest.mark.parametrize("name", COMPARED)
def test_what_is_imported_equals_trls_loss(name, tmp_path):
    settings, plain = SETTINGS.get(name, {}), name.partition("+")[0]
    keys = "".join(f"{key}: {value}\n" for key, value in settings.items())
    read, _ = table(tmp_path, f"{TRL}beta: 0.2\nloss_type: {plain}\n{keys}")
    ours = resolve(read, offers(), file="imported.toml").stages[0].task.objective
    tolerance = 1e-7 if name == "exo_pair" else 1e-10  # which keeps its smoothing in float32
    assert (
        apart(
            lambda policy, reference: mean_over_pairs(ours, policy, reference),
            lambda policy, reference: trl_pairs(policy, reference, plain, beta=0.2, **settings),
        )
        < tolerance
    )


@pytest.mark.parametrize(
    ("coefficient", "expected"),
    [
        (0.9, {"divergence": "alpha", "alpha": 0.1}),
        (1, {"divergence": "reverse_kl"}),
        (0, {"divergence": "forward_kl"}),
    ],
)
def test_trls_alpha_is_the_other_way_round(coefficient, expected, tmp_path):
    made = objective(tmp_path, f"{DPO}f_divergence_type: alpha_divergence\nf_alpha_divergence_coef: {coefficient}\n")
    assert made == {"use": "f_dpo", "beta": 0.1, **expected}


@pytest.mark.parametrize(("name", "use"), [("nll", "sft"), ("chunked_nll", "sft"), ("dft", "dft")])
def test_a_loss_of_sft_makes_it_sft(name, use, tmp_path):
    stage, made, _ = stage_of(tmp_path, f"{TRL}loss_type: {name}\n")
    assert (stage, made["objective"]) == ("sft", use)


def test_the_value_of_the_loss_tells_the_stage(tmp_path):
    assert stage_of(tmp_path, f"{TRL}loss_type: [dft]\n")[0] == "sft"
    assert stage_of(tmp_path, f"{TRL}loss_type: apo_zero\n")[0] == "apo_zero"
    assert stage_of(tmp_path, f"{TRL}loss_type: [sigmoid]\n")[0] == "dpo"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{LLAMA}use_dft_loss: true\n", "dft"),
        (f"{FACTORY}pref_loss: hinge\n", {"use": "slic", "beta": 0.1}),
        (f"{FACTORY}pref_loss: orpo\npref_beta: 0.2\n", {"use": "orpo", "beta": 0.2}),
        (f"{FACTORY}pref_loss: simpo\npref_beta: 2\n", {"use": "simpo", "beta": 2, "gamma": 0.5}),
        (f"{FACTORY}dpo_label_smoothing: 0.1\n", {"use": "dpo", "beta": 0.1, "label_smoothing": 0.1}),
        (f"{FACTORY}pref_ftx: 0.5\n", {"use": "sum", "of": [{"use": "dpo", "beta": 0.1}, {"use": "sft", "weight": 0.5}]}),
        (f"{AXO}rl: dpo\ndpo_loss_type: [ipo]\n", {"use": "ipo", "tau": 0.1}),
        (f"{AXO}rl: ipo\ndpo_beta: 0.2\n", {"use": "ipo", "tau": 0.2}),
        (f"{AXO}rl: dpo\ntrl:\n  beta: 0.2\n", {"use": "dpo", "beta": 0.2}),
        (f"{AXO}rl: simpo\nrl_beta: 2.5\nsimpo_gamma: 1\ncpo_alpha: 0\n", {"use": "simpo", "beta": 2.5, "gamma": 1}),
        (
            f"{AXO.replace('size: 2', 'size: 1')}rl: simpo\nsimpo_gamma: 1\n",
            {"use": "sum", "of": [{"use": "simpo", "beta": 0.1, "gamma": 1}, {"use": "sft"}]},
        ),
        (f"{DPO}reference_free: true\n", {"use": "dpo", "reference_free": True, "beta": 0.1}),
        (f"{DPO}ld_alpha: 1.0\nf_divergence_type: reverse_kl\nrpo_alpha: null\n", {"use": "dpo", "beta": 0.1}),
        (f"{DPO}loss_type: robust\n", {"use": "robust_dpo", "beta": 0.1, "noise": 0}),
        (
            f"{DPO}rpo_alpha: 0.2\nper_device_train_batch_size: 1\n",
            {"use": "sum", "of": [{"use": "dpo", "beta": 0.1}, {"use": "sft", "weight": 0.2}]},
        ),
        (
            f"{DPO}loss_type: [sigmoid, bco_pair, sft]\nloss_weights: [0.8, 0.2, 1.0]\nper_device_train_batch_size: 1\n",
            {
                "use": "sum",
                "of": [
                    {"use": "dpo", "beta": 0.1, "weight": 0.8},
                    {"use": "bco", "reward_shift": "none", "beta": 0.1, "weight": 0.2},
                    {"use": "sft"},
                ],
            },
        ),
        (f"{PREFS}label_smoothing: 0.1\nbeta: 0.1\n", {"use": "dpo", "beta": 0.1, "label_smoothing": 0.1}),
        (f"{PREFS}loss_type: exo_pair\n", {"use": "exo", "label_smoothing": 0.001, "beta": 0.1}),
    ],
)
def test_a_loss_becomes_its_objective(text, expected, tmp_path):
    assert objective(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{DPO}loss_type: aot\n", "line 7: `loss_type` = 'aot': cannot be imported: it sorts the margins of a micro-batch"),
        (f"{DPO}loss_type: made_up\n", "`loss_type` = 'made_up': cannot be imported: it is none of those that can: sigmoid, hinge, ipo, "),
        (
            f"{DPO}loss_type: sft\nper_device_train_batch_size: 1\n",
            "`loss_type` = 'sft': cannot be imported: it learns the chosen replies alone",
        ),
        (f"{DPO}loss_type: exo_pair\n", "it needs a `label_smoothing` above 0"),
        (f"{DPO}use_weighting: true\n", "line 7: `use_weighting` = True: cannot be imported: it aligns WPO's weights"),
        (f"{DPO}loss_type: hinge\nld_alpha: 0.5\n", "line 8: `ld_alpha` = 0.5: cannot be imported: no objective here equals hinge with it"),
        (
            f"{DPO}ld_alpha: 0.5\nuse_weighting: true\n",
            "line 7: `ld_alpha` = 0.5: cannot be imported: no objective here equals sigmoid with it",
        ),
        (f"{DPO}rpo_alpha: 0.5\n", "line 7: `rpo_alpha` = 0.5: cannot be imported: tokens are averaged over a micro-batch there"),
        (f"{DPO}loss_type: [sigmoid, sft]\n", "line 7: `loss_type` = ['sigmoid', 'sft']: cannot be imported: tokens are averaged"),
        (f"{DPO}loss_type: [sigmoid, ipo]\nloss_weights: [1]\n", "line 8: `loss_weights` = 1.0: cannot be imported: there are 2 losses"),
        (f"{DPO}f_divergence_type: chi\n", "divergences that can are forward_kl, js_divergence, alpha_divergence"),
        (f"{DPO}f_divergence_type: alpha_divergence\nf_alpha_divergence_coef: 2\n", "a coefficient should lie between 0 and 1"),
        (f"{TRL}label_smoothing_factor: 0.1\n", "line 6: `label_smoothing_factor` = 0.1: cannot be imported: cross-entropy"),
        (
            f"{PREFS}beta: 0.1\nld_alpha: 0.5\n",
            "`ld_alpha` = 0.5: cannot be imported: it weighs the policy's tokens, but not the reference's",
        ),
        (f"{PREFS}loss_type: bco_pair\n", "it shifts rewards by their running mean"),
        (f"{FACTORY}ld_alpha: 0.5\n", "it weighs the policy's tokens"),
        (f"{FACTORY}pref_bco_weight: 0.5\n", "no objective here equals sigmoid with it"),
        (f"{LLAMA}use_eaft_loss: true\n", "line 7: `use_eaft_loss` = True: cannot be imported: there is no such loss here"),
        (f"{AXO}rl: orpo\n", "of `rl`, dpo, ipo and simpo can; trl's ORPO learns the prompt too"),
        (f"{AXO}rl: ipo\ndpo_loss_type: [ipo]\n", "line 11: `dpo_loss_type` = 'ipo': cannot be imported: `rl: ipo` says it too"),
        (f"{AXO}rl: simpo\n", "line 10: `rl` = 'simpo': cannot be imported: `simpo_gamma` is missing"),
        (f"{AXO}rl: simpo\nsimpo_gamma: 1\n", "line 10: `rl` = 'simpo': cannot be imported: tokens are averaged over a micro-batch"),
        (
            PREFS.replace("data/dpo", "data/zephyr-orpo-141b-A35b-v0.1") + "beta: 0.05\n",
            "tells of orpo, which cannot be imported: trl's learns the prompt too, unlike `orpo` here",
        ),
    ],
)
def test_what_no_objective_equals_is_refused(text, message, tmp_path):
    assert message in refusal(tmp_path, text)


def test_trl_ignores_the_smoothing_of_sigmoid_and_the_handbooks_does_not(tmp_path):
    _, stage, made = stage_of(tmp_path, f"{DPO}label_smoothing: 0.1\n")
    assert stage["objective"] == {"use": "dpo", "beta": 0.1}
    told = left(made)["label_smoothing"]
    assert (told.near, told.matters) == ("objective.label_smoothing", False)
    assert told.reason.startswith("is ignored there for this loss")
    assert HANDBOOKS.losses["sigmoid"] == LLAMA_FACTORY["sigmoid"] != TRLS["sigmoid"]


def test_the_handbooks_apo_recipe_is_imported(tmp_path):
    name, stage, made = stage_of(tmp_path, APO, devices=8)
    assert (made.drafts[0].format, name, stage["objective"]) == ("alignment-handbook", "apo_zero", {"use": "apo_zero", "beta": 0.05})
    assert (stage["max_length"], stage["train"]["examples_per_step"], stage["train"]["learning_rate"]) == (24576, 16, 1e-6)
    assert "lr_scheduler_type" in left(made)


def test_the_table_of_the_documentation_has_every_loss():
    rows = [line.split("|")[1:] for line in (ROOT / "docs/how-to/migrate.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    for column, losses in enumerate((TRLS, LLAMA_FACTORY)):
        for name, loss in losses.items():
            plain = name.partition("+")[0]
            if isinstance(loss, Loss) and name != "sft":
                assert any(f"`{plain}`" in row[column] and f"`{loss.use}`" in row[2] for row in rows if len(row) > 3), name


@pytest.mark.parametrize("text", [TRL, AXO, LLAMA, HANDBOOK])
def test_noise_on_embeddings_is_carried_over(text, tmp_path):
    read, made = table(tmp_path, f"{text}neftune_noise_alpha: 5\n")
    assert read["model"]["embedding_noise"] == 5
    assert "neftune_noise_alpha" not in left(made)


def test_noise_of_one_stage_is_not_the_next_ones(tmp_path):
    read, _ = table(tmp_path, f"{TRL}neftune_noise_alpha: 5\n", DPO)
    stages = resolve(read, offers(), file="imported.toml").stages
    assert [stage.model.embedding_noise for stage in stages] == [5, 0]


@pytest.mark.parametrize(
    ("keys", "all_tokens"),
    [
        ("assistant_only_loss: true\ncompletion_only_loss: false\n", False),
        ("assistant_only_loss: false\ncompletion_only_loss: true\n", False),
        ("assistant_only_loss: false\ncompletion_only_loss: false\n", True),
        ("", True),
    ],
)
def test_two_switches_tell_of_what_is_learnt(keys, all_tokens, tmp_path):
    _, made = table(tmp_path, TRL + keys)
    (line,) = re.findall(r"^(.*)\n?objective = \"sft\"(.*)$", made.text, re.MULTILINE)
    assert ("theirs is on every token" in "".join(line)) == all_tokens

"""The card of an export: true elsewhere too, with no path of the machine that it was made on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from exports import Silent, write_run, write_weights
from made_runs import EVALUATION, put
from test_cli import call
from zkit_export.card import write_card as write_exported
from zkit_export.exporting import Export
from zkit_export.wish import Wish

from zephyr_kit.card import COUNTS, write_card
from zephyr_kit.models import NamedModel, find_model
from zephyr_kit.plugins import Plugins
from zephyr_kit.protocols import Start

LAST = {"loss": 0.5, "reward/accuracy": 0.9, "held_out/loss": 0.75}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with an adapter over a folder of this machine, whose name must be quoted in JSON."""
    folder = tmp_path_factory.mktemp("anna's größe")
    run = write_run(folder / "lora", "lora", write_weights(folder / "out-plain"))
    model = find_model(str(run), Plugins())
    ledger = dict.fromkeys(COUNTS, 0)
    about = {"run": "lora", "stage": "sft", "before": (), "seed": 0, "ledger": ledger, "last": LAST, "breaks": {}}
    write_card(run / "sft" / "model", settings=model.stages[0].settings, **about)
    put(run / "evaluations" / "wishes-1" / "evaluation.json", {"evaluations": [EVALUATION]})
    return run


@pytest.mark.parametrize("merge", [False, True])
def test_no_path_of_this_machine_leaves_with_it(run, tmp_path, merge):
    said: list[str] = []
    Export(find_model(str(run), Plugins()), Wish(tmp_path / "out", merge=merge), torch.device("cpu"), Silent(said)).run()
    texts = {file.name: file.read_text("utf-8") for file in (tmp_path / "out").iterdir() if file.suffix in (".md", ".json", ".jinja")}
    card = texts["README.md"]
    told = {name for name, text in texts.items() if str(run.parent) in text or json.dumps(str(run.parent))[1:-1] in text}
    assert told == (set() if merge else {"adapter_config.json"})
    assert "base_model:" not in card
    assert "- base: `out-plain`" in card
    assert 'data jsonl: path = "rows.jsonl"' in card
    assert '| `model.weights` | `"out-plain"` |' in card
    assert "0.75 (0.625 to 0.875)" in card, "an interval that the suite gave"
    warned = [line for line in said if "it loads only where that folder is; --merge writes the model whole" in line]
    assert len(warned) == (0 if merge else 1)


def test_what_nobody_else_could_load_is_not_pushed(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zkit_export.hub.check_hub", lambda *given, **how: pytest.fail("the hub was asked"))
    code, out, err = call(capsys, "export", run, "--to", tmp_path / "out", "--push", "me/mine")
    assert (code, out) == (1, "")
    assert err == f"error: --push me/mine: the adapter stands on {run.parent / 'out-plain'}, which nobody else has; add --merge\n"
    assert not (tmp_path / "out").exists()


def test_a_base_on_the_hub_is_named(tmp_path):
    settings = {"model.weights": "owner/name", "objective.use": "sft"}
    write_card(tmp_path, run="r", stage="s", before=(), seed=0, settings=settings, ledger=dict.fromkeys(COUNTS, 0), last=LAST, breaks={})
    assert "\nbase_model: owner/name\n" in (tmp_path / "README.md").read_text("utf-8")


def test_held_out_figures_come_first_and_the_others_say_what_they_are(run):
    card = (run / "sft" / "model" / "README.md").read_text("utf-8")
    held_out, step = card.index("| held_out/loss | 0.75 |"), card.index("| reward/accuracy | 0.9 |")
    assert card.index("On held-out data") < held_out < card.index("Of the last step, over its own examples alone") < step


def test_random_weights_have_no_licence_to_name(tmp_path):
    model = NamedModel("made", SimpleNamespace(), Start(tmp_path), stages=(SimpleNamespace(settings={}),))
    write_exported(tmp_path, model, [], origin="nothing", whole=True)
    assert "Training began with random weights, which have no licence." in (tmp_path / "README.md").read_text("utf-8")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_the_code_of_a_card_talks_to_the_model(run, capsys):
    folder = run / "sft" / "model"
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)[1]
    exec(code.replace("FOLDER", str(folder)).replace("256", "3"), {})
    assert capsys.readouterr().out.endswith("\n")

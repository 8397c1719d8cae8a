"""`zkit certify`: it passes what is schedule and not mathematics, and fails what is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import CUT, Averaging, Crossing, Detached, Idle, Levelling, OpenlyAveraging, Raising, Undefined
from references import Listener
from tiny import write_model
from zkit_attentions.dense import Dense

from zephyr_kit import ZkitError, cli
from zephyr_kit.certificate import Certificate, certify
from zephyr_kit.plugins import Plugins
from zephyr_kit.preset import Preset, resolve
from zephyr_kit.protocols import Attention, Objective
from zephyr_kit.runs import RunFolder
from zephyr_kit.trial import Size, Trial, trial_of
from zephyr_kit.ways import Way

CPU = torch.device("cpu")
PAIRS = {"use": "ultrafeedback", "path": "preference_pandalm.jsonl.gz"}
DIALOGUES = {"use": "ultrachat", "path": "chat_sgd.jsonl.gz"}
RATED = {"use": "ultrafeedback", "path": "feedback_arena.jsonl.gz"}
OTHER_ROWS = {
    "sft": DIALOGUES,
    "dft": DIALOGUES,
    "kto": {**PAIRS, "binarise": {"rule": "each"}},
    "listwise_dpo": {**RATED, "binarise": {"rule": "ranked", "take": 4}},
}
KEYS = {
    "kto": {"threshold": 1.5},
    "sum": {"of": [{"use": "dpo"}, {"use": "sft", "weight": 0.2}]},
}
CUT_WAYS = {"batches of half a step", "each example alone", "prompts repeated, each example alone"}
WORDS = ["sun", "moon", "star", "tree", "river", "stone", "bird", "fish"]


@cache
def offers() -> Any:
    return Plugins().offers


def preset(weights: Path, rows: Path | dict[str, Any], objective: Any, **model: Any) -> Preset:
    stage = {
        "objective": objective,
        "data": [rows if isinstance(rows, dict) else {"use": "jsonl", "path": str(rows)}],
        "max_length": 160,
        "train": {"epochs": 1, "examples_per_step": 8, "learning_rate": 1e-3},
    }
    table = {"name": "it", "model": {"use": "mistral", "weights": str(weights), "template": "zephyr", **model}, "stages": {"it": stage}}
    return resolve(table, offers(), file="it.toml")


def trial(made: Preset, folder: Path, size: Size = Size(2, 2)) -> Trial:  # noqa: B008  frozen
    return trial_of(made, made.stages[0], RunFolder(folder), CPU, "float64", size, Listener())


def certificate(one: Trial, *, ranks: int = 1, attentions: Any = None) -> Certificate:
    return certify(one, tolerance=1e-9, attentions=attentions or {}, ranks=ranks, narrator=Listener())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Of DPO on a tiny model, with dropout, and rows that are short."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [{"prompt": WORDS[n % 8], "chosen": " ".join(WORDS[: n % 5 + 1]), "rejected": " ".join(WORDS[n % 3 :])} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lora = {"rank": 2, "dropout": 0.1}
    made = preset(write_model(folder / "model", attention_dropout=0.2), folder / "rows.jsonl", "dpo", lora=lora)
    return trial(made, folder, Size(2, 3))


def of(one: Trial, objective: Any) -> Trial:
    return replace(one, task=replace(one.task, objective=objective, reference=None))


@pytest.mark.parametrize("name", sorted(Plugins().offered(Objective)))
def test_every_objective_is_certified_on_real_rows(shared: Path, tmp_path: Path, name: str) -> None:
    rows = OTHER_ROWS.get(name, PAIRS)
    rows = {**rows, "path": str(shared / "data" / str(rows["path"]))}
    found = certificate(trial(preset(shared / "models/stories260k", rows, {"use": name, **KEYS.get(name, {})}), tmp_path, Size(1, 2)))
    assert found.holds, found.comparisons
    assert len(found.comparisons) >= 3
    assert all(one.verdict == "pass" for one in found.comparisons)


def test_an_average_over_micro_batches_is_not_certified(pairs: Trial) -> None:
    found = certificate(of(pairs, Averaging()))
    assert not found.holds
    assert {one.what for one in found.comparisons if one.verdict == "fail"} == CUT_WAYS
    assert min(one.gradient or 0 for one in found.comparisons if one.verdict == "fail") > 1e-2
    assert {one.what for one in found.comparisons if one.verdict == "pass"} == {"rows in the opposite order", "prompts repeated"}


@pytest.mark.parametrize("objective", [Crossing(), Levelling(), Levelling(beta=0.01)], ids=repr)
def test_what_shows_only_where_the_policy_is_not_its_reference_is_not_certified(pairs: Trial, objective: Objective) -> None:
    one = replace(of(pairs, objective), steps=pairs.steps[:1])
    found = certificate(one)
    verdicts = {each.what: each.verdict for each in found.comparisons}
    assert {what for what, verdict in verdicts.items() if verdict == "fail"} == CUT_WAYS
    assert verdicts["rows in the opposite order"] == verdicts["reference scored beforehand"] == "pass"
    assert certificate(replace(one, task=pairs.task)).holds


def test_steps_start_away_from_the_reference_by_the_seed(pairs: Trial) -> None:
    policy, _ = pairs.policy()
    moved = pairs.away(policy)
    assert moved.offset.amount > 0
    assert moved.offset.seed == pairs.start.seed
    assert pairs.away(pairs.policy()[0]) == moved
    assert of(pairs, Averaging()).away(pairs.policy()[0]).offset.amount == 0


def test_without_a_gradient_nothing_is_certified(pairs: Trial) -> None:
    found = certificate(of(pairs, Idle()))
    assert not found.holds
    assert [(one.what, one.verdict) for one in found.comparisons] == [("one batch a step", "fail")]
    assert "no gradient: nothing was proved" in found.comparisons[0].remark


def test_a_loss_that_cannot_be_compared_is_told_with_its_place(pairs: Trial) -> None:
    with pytest.raises(ZkitError, match=r"the objective raised RuntimeError: boom \(.*planted\.py, line \d+"):
        certificate(of(pairs, Raising()))
    with pytest.raises(ZkitError, match="the loss of its first examples is nan"):
        certificate(of(pairs, Undefined()))
    with pytest.raises(ZkitError, match="the loss has lost its graph"):
        certificate(of(pairs, Detached()))


def test_what_it_breaks_in_the_open_stands_in_the_certificate(pairs: Trial) -> None:
    found = certificate(of(pairs, OpenlyAveraging()))
    assert found.holds
    assert {one.what: one.remark for one in found.comparisons if one.verdict == "broken"} == dict.fromkeys(CUT_WAYS, CUT)
    assert found.breaks["adds_up_over_examples"] == CUT


def test_dropout_is_switched_off_and_named(pairs: Trial) -> None:
    found = certificate(pairs, attentions=Plugins().offered(Attention))
    assert found.holds, found.comparisons
    assert sorted(set(found.switched_off.values())) == [0.1, 0.2]
    assert len(found.switched_off) == 2 * (7 + 1)
    kernels = {one.what: one.verdict for one in found.comparisons if one.what.startswith("attention")}
    assert kernels["attention dense"] == kernels["attention segments"] == "pass"
    assert kernels["attention flash"] == "not tried"


class Blurred(Dense):
    """Right to six digits."""

    def attend(self, *given: Any, scale: float, **more: Any) -> torch.Tensor:
        return super().attend(*given, scale=scale * (1 + 1e-6), **more)


def test_a_kernel_that_blurs_is_not_certified(pairs: Trial) -> None:
    found = certificate(of(pairs, Averaging()), attentions={"blurred": Blurred})
    assert {one.what: one.verdict for one in found.comparisons}["attention blurred"] == "fail", found.comparisons


TOML = """
name = "tiny"
[model]
use = "mistral"
weights = "{folder}/model"
template = "zephyr"
[stages.sft]
objective = "sft"
data = [{{ use = "quickstart", part = "chat", count = 20 }}]
max_length = 200
train = {{ steps = 1, examples_per_step = 4, learning_rate = 1e-3 }}
"""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    (tmp_path / "tiny.toml").write_text(TOML.format(folder=tmp_path))

    def call(*more: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(["certify", "tiny.toml", "--steps", "1", "--examples", "2", *more])
        return (caught.value.code, *capsys.readouterr())

    code, out, err = call("--dtype", "float64", "--json")
    assert out, err
    told = json.loads(out)["stages"][0]
    assert (code, told["holds"], told["objective"], told["num_examples"]) == (0, True, "sft", 2), err
    passed = {one["what"] for one in told["comparisons"] if one["verdict"] == "pass"}
    assert {"2 ranks", "2 ranks, weights shared out", "2 ranks, each batch together", "attention dense"} <= passed
    code, out, _ = call("--ranks", "1", "--tolerance", "1e-30", "--set", "seed=7", "--set", "stages.sft.train.context_parallel=3")
    assert code == 1
    assert "each batch by 3 ranks together, as train.context_parallel says: not tried: --ranks 3 tries it" in out
    assert "not certified" in out
    assert "FAIL" in out
    assert "attention flash: not tried: " in out
    code, _, err = call("--examples", "1")
    assert code == 1
    assert "a step of one example can be cut in one way only, so nothing is compared" in err
    code, _, err = call("--stage", "stf")
    assert code == 2
    assert "no stage that trains is called 'stf'; did you mean `sft`?" in err


def test_ranks_that_compute_each_batch_together_are_as_many_as_the_stage_says(pairs: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def records(_: Trial, ways: Sequence[Way], ranks: int) -> list[str]:
        asked.append((ranks, ways[-1].num_in_team))
        return ["as a test has it"] * len(ways)

    monkeypatch.setattr(Trial, "records", records)
    for number, ranks in ((1, 2), (2, 4), (3, 3), (3, 2)):
        train = replace(pairs.task.train, context_parallel=number)
        found = certificate(replace(pairs, task=replace(pairs.task, train=train)), ranks=ranks)
    assert asked == [(2, 2), (4, 2), (3, 3), (2, 2)]
    assert found.comparisons[-1].remark == "--ranks 3 tries it"


def test_what_cannot_be_honoured_is_refused(pairs: Trial, tmp_path: Path) -> None:
    made = preset(tmp_path, tmp_path / "no-rows.jsonl", "dpo")
    table = {**made.table, "stages": {"it": {**made.table["stages"]["it"], "data": [{"use": "stage", "name": "feedback"}]}}}
    gather = {"prompts": [{"use": "quickstart", "part": "prompt"}], "completers": [{"use": "own"}], "judge": "quickstart"}
    table["stages"] = {"feedback": gather, **table["stages"]}
    later = resolve(table, offers(), file="it.toml")
    with pytest.raises(ZkitError, match="its data has not been gathered yet; run the preset first"):
        trial_of(later, later.stages[1], RunFolder(tmp_path), CPU, "float64", Size(), Listener())

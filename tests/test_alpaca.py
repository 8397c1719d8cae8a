"""AlpacaEval: outputs and annotations in its formats, and its package's own aggregates of them."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import backend
from small_model import small_weights
from toys import Listener, Referee
from zkit_evaluation.alpaca import AlpacaEval, read_outputs

from zephyr_kit import ZkitError
from zephyr_kit.answers import Answers
from zephyr_kit.desk import Desk
from zephyr_kit.protocols import Evaluation, Start
from zephyr_kit.subjects import Subject

pytest.importorskip("alpaca_eval", reason="alpaca_eval is not installed: pip install 'zephyr-kit[eval]'")

INSTRUCTIONS = ["Tell me about a cat.", "Why do birds sing?", "Write a story."]


@pytest.fixture
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[Subject]:
    answers = Answers(tmp_path / "answers")
    weights = small_weights(request, tmp_path_factory)
    yield Subject(backend(weights, template="zephyr"), Start(), torch.device("cpu"), answers, Listener())
    answers.close()


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    rows = [{"dataset": "here", "instruction": text, "output": "A dull answer.", "generator": "dull"} for text in INSTRUCTIONS]
    (tmp_path / "reference.json").write_text(json.dumps(rows))
    return tmp_path / "reference.json"


def annotation(preference: float, output: str = "x", number: int = 0) -> dict[str, Any]:
    """As annotations.json of alpaca_eval has it."""
    of_reference = {"output_1": "y" * 200, "generator_1": "text_davinci_003"}
    mine = {"output_2": output, "generator_2": "ours", "annotator": "alpaca_eval_gpt4", "preference": preference}
    return {"dataset": "koala", "instruction": f"Question {number}", **of_reference, **mine}


def test_rates_are_alpaca_evals_on_annotations_in_its_format():
    from zkit_evaluation.alpaca_metrics import rates

    listener = Listener()
    # The published count of zephyr-7b-beta: 727 wins, 75 losses and a draw of 803, 90.598 +- 1.029.
    found = rates([annotation(2)] * 727 + [annotation(1)] * 75 + [annotation(1.5)], listener)
    assert found["win_rate"] == pytest.approx(90.598, abs=5e-4)
    assert found["standard_error"] == pytest.approx(1.029, abs=5e-4)
    assert (found["n_wins"], found["n_wins_base"], found["n_draws"], found["n_total"]) == (727, 75, 1, 803)
    assert "length_controlled_winrate" not in found
    assert "it is for the 805 instructions" in listener.lines[0]
    # Preferences between 1 and 2, as the weighted annotator gives them; the discrete rate rounds them.
    found = rates([annotation(1.9), annotation(1.2), annotation(1.4)], listener)
    assert found["win_rate"] == pytest.approx(50.0)
    assert found["discrete_win_rate"] == pytest.approx(100 / 3)


def test_a_judge_of_ours_prefers_in_both_orders_or_not_at_all(subject: Subject, reference: Path, tmp_path: Path):
    longest = Referee(lambda reply, _: float(len(reply)))
    first_place = Referee(lambda _, place: -float(place), name="first place")
    for judge, rates in ((longest, {0.0, 100.0}), (first_place, {50.0})):
        suite = AlpacaEval(reference=str(reference), judge=judge, max_new_tokens=4, temperature=0.0)
        evaluation = suite.evaluate({"tiny": subject}, subject.tokenizer, tmp_path / judge.name)
        assert isinstance(evaluation, Evaluation)
        outputs = json.loads((tmp_path / judge.name / "outputs" / "tiny.json").read_text())
        assert [row["instruction"] for row in outputs] == INSTRUCTIONS
        assert set(outputs[0]) == {"dataset", "instruction", "output", "generator"}
        annotations = json.loads((tmp_path / judge.name / "annotations" / "tiny.json").read_text())
        if judge is longest:
            signs = [2.0 if len(row["output"]) > len("A dull answer.") else 1.0 for row in outputs if len(row["output"]) != 14]
            assert [row["preference"] for row in annotations if len(row["output_2"]) != 14] == signs
        else:
            assert evaluation.rows["tiny"]["win rate"] in rates
        assert evaluation.rows["tiny"]["compared"] == 3
    assert len(longest.asked) == 6


def test_outputs_in_another_form_are_refused(tmp_path: Path):
    nothing = '[{"instruction": "x"}]'
    for text, told in [("{", "not JSON"), ("[]", "should be a list of outputs"), (nothing, r"output 0 \(from 0\) has no `output`")]:
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ZkitError, match=told):
            read_outputs(str(tmp_path / "bad.json"))


def test_the_length_controlled_rate_takes_out_what_length_alone_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from alpaca_eval.metrics import glm_winrate
    from zkit_evaluation import alpaca_metrics
    from zkit_evaluation.alpaca_metrics import FULL, rates

    draw = random.Random(0)
    head = ["model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
    difficulty = [draw.gauss(0, 0.1) for _ in range(FULL)]
    gamed = [[name, n, 0.5, draw.gauss(0, 1), difficulty[n], False] for name in ("concise", "verbose") for n in range(FULL)]
    with (tmp_path / "df_gamed.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *gamed])
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(tmp_path / "df_gamed.csv"))
    # Who is longer wins, and most of ours are longer: at equal lengths nothing is left of that.
    lengths = [draw.randrange(150, 400) for _ in range(FULL)]
    rows = [annotation(2.0 if length > 200 else 1.0, "x" * length, number) for number, length in enumerate(lengths)]
    published = [{"instruction": f"Question {number}", "output": "y", "generator": "z"} for number in range(FULL)]
    (tmp_path / "published.json").write_text(json.dumps(published))
    monkeypatch.setattr(alpaca_metrics, "PUBLISHED", str(tmp_path / "published.json"))
    found = rates(rows, Listener())
    raw, controlled = found["win_rate"], found["length_controlled_winrate"]
    assert raw is not None
    assert controlled is not None
    assert raw > 75
    assert abs(controlled - 50) < abs(raw - 50)
    # As many, but in another order, or such that nobody can tell: the difficulties would be those of others.
    for others, place, told in [(rows[::-1], "published.json", "others were compared"), (rows, "nowhere.json", "cannot be told")]:
        listener = Listener()
        monkeypatch.setattr(alpaca_metrics, "PUBLISHED", str(tmp_path / place))
        assert "length_controlled_winrate" not in rates(others, listener)
        assert told in listener.lines[0]


def test_what_the_judge_fails_on_is_not_counted_as_compared(subject: Subject, reference: Path, tmp_path: Path):
    judge = Referee(lambda reply, _: float(len(reply)), fails=lambda case: "broke" if "birds" in case.dialogue[0].content else "")
    suite = AlpacaEval(reference=str(reference), judge=judge, max_new_tokens=4, temperature=0.0, max_failed=1.0)
    evaluation = suite.evaluate({"tiny": subject}, subject.tokenizer, tmp_path / "out")
    assert isinstance(evaluation, Evaluation)
    assert evaluation.rows["tiny"]["compared"] == 2


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_annotations_that_hold_no_preference_are_not_compared_and_too_many_are_refused(missing, tmp_path: Path, monkeypatch):
    from alpaca_eval import annotators
    from zkit_evaluation.alpaca_metrics import annotate

    class Annotator:
        def __init__(self, **settings: Any) -> None:
            assert settings["is_store_missing_annotations"] is False

        def annotate_head2head(self, outputs_1: Any, outputs_2: Any) -> list[dict[str, Any]]:
            return [annotation(missing if number == 0 else 2.0, number=number) for number in range(len(outputs_2))]

    monkeypatch.setattr(annotators, "PairwiseAnnotator", Annotator)
    listener = Listener()
    own = [{"instruction": text} for text in INSTRUCTIONS]
    for allowed in (0.4, 0.3):
        suite = AlpacaEval(reference="x", max_failed=allowed)
        desk = Desk("suite alpaca-eval", None, listener, allowed)
        if allowed == 0.4:
            assert [row["preference"] for row in annotate(suite, desk, own, own, tmp_path)] == [2.0, 2.0]
            assert "in 1 of 3 answers" in listener.lines[0]
        else:
            with pytest.raises(ZkitError, match=r"in 1 of 3 answers .* more than max_failed = 0.3 allows"):
                annotate(suite, desk, own, own, tmp_path)

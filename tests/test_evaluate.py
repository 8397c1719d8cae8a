"""A real small model, trained by SFT and DPO on real pairs, is measured by the suites offline, with a judge over HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback
from small_model import Body, Said, SmallModel
from test_resume import run_here

PRESET = """
name = "measured"
seed = 3

[model]
use = "mistral"
weights = "{shared}/models/stories260k"
dtype = "float32"
template = "zephyr"

[stages.sft]
objective = "sft"
data = [{{ use = "ultrachat", path = "{shared}/data/chat_sgd.jsonl.gz", limit = 16 }}]
held_out = [{chats}]
max_length = 512
train = {{ steps = 2, examples_per_step = 4, learning_rate = 1e-3 }}

[stages.dpo]
objective = {{ use = "dpo", beta = 0.1 }}
data = [{pairs}]
held_out = [{pairs}]
max_length = 512
bad_rows = 0.6
train = {{ steps = 2, examples_per_step = 4, learning_rate = 1e-3 }}

[stages.evaluate]
base = true
suites = [
  {{ use = "perplexity", data = [{chats}], max_length = 512 }},
  {{ use = "preference", data = [{pairs}], max_length = 512, bad_rows = 0.6 }},
]
"""
CHATS = '{{ use = "ultrachat", path = "{shared}/data/chat_sgd.jsonl.gz", limit = 6 }}'
PAIRS = '{{ use = "ultrafeedback", path = "{shared}/data/preference_pandalm.jsonl.gz", limit = 16 }}'
JUDGED = """
[[suites]]
use = "win-rate"
prompts = [{{ use = "ultrafeedback", path = "{shared}/data/feedback_arena.jsonl.gz", limit = 5 }}]
judge = {{ use = "openai", model = "loopback", base_url = "{url}", rubric = "overall", backoff = 0.01, retries = 0, concurrency = 1 }}
max_new_tokens = 8
max_failed = {failed}

[[suites]]
use = "mt-bench"
questions = "{folder}/question.jsonl"
judge = {{ use = "openai", model = "loopback", base_url = "{url}", backoff = 0.01, retries = 0, concurrency = 1 }}
grading = ["single", "pairs"]
max_new_tokens = 8
max_failed = {failed}
"""


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    rows = {"chats": CHATS.format(shared=shared), "pairs": PAIRS.format(shared=shared)}
    (folder / "preset.toml").write_text(PRESET.format(shared=shared, **rows))
    run_here(folder / "preset.toml", folder / "run")
    return folder / "run"


class Judge:
    """Grades by the words of the request, in the form that it asks for, until it has had enough."""

    def __init__(self, weights: Path) -> None:
        self.model, self.left = SmallModel(weights), 10**9

    def __call__(self, body: Body) -> Said:
        self.left -= 1
        if self.left < 0:
            raise ValueError("no more")
        if "response_format" in body:
            return self.model(body)
        drawn = hashlib.sha256(body["messages"][-1]["content"].encode()).digest()[0]
        verdict = "ABC"[drawn % 3] if "[[A]]" in body["messages"][-1]["content"] else str(1 + drawn % 10)
        return Said(f"So: [[{verdict}]]")


def zkit(*words: object, code: int = 0) -> str:
    from zephyr_kit.cli import main

    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == code, said.getvalue()
    return said.getvalue()


def found(run: Path, title: str) -> dict[str, Any]:
    done = json.loads((run / "evaluate" / "done.json").read_text())
    return next(each for each in done["evaluations"] if each["title"] == title)


def at_the_end(run: Path, stage: str) -> dict[str, float]:
    """The last look at held-out data."""
    lines = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in reversed(lines) if "held_out/loss" in line)


def test_losses_and_rewards_are_those_of_training(run: Path):
    perplexity, preference = found(run, "Perplexity"), found(run, "Held-out preferences")
    assert list(perplexity["rows"]) == ["base", "sft", "dpo"]
    of_sft, of_dpo = at_the_end(run, "sft"), at_the_end(run, "dpo")
    assert perplexity["rows"]["sft"]["loss"] == pytest.approx(of_sft["held_out/loss"], rel=1e-4)
    assert perplexity["rows"]["base"]["loss"] > perplexity["rows"]["sft"]["loss"]
    assert preference["rows"]["dpo"]["reward accuracy"] == pytest.approx(of_dpo["held_out/reward/accuracy"])
    assert preference["rows"]["dpo"]["margin"] == pytest.approx(of_dpo["held_out/reward/margin"], rel=1e-3, abs=1e-4)
    assert preference["rows"]["base"]["margin"] is None
    assert preference["rows"]["sft"]["margin"] is not None
    for evaluation in (perplexity, preference):
        for model, measures in evaluation["intervals"].items():
            for name, (low, high) in measures.items():
                assert low <= evaluation["rows"][model][name] <= high


def test_an_evaluation_stage_is_done_once_and_again_when_its_rows_change(run: Path, tmp_path: Path, shared: Path):
    suite = f"perplexity:data=[{{use=\"jsonl\",path=\"{tmp_path}/rows.jsonl\"}}],max_length=128"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Hello", "completion": "Once upon a time"}) + "\n")
    words = ("evaluate", run, "--stage", "sft", "--suite", suite, "--output", tmp_path / "out")
    said = zkit(*words)
    assert "perplexity: measuring sft" in said
    assert "╇" in said
    again = zkit(*words)
    (told,) = [line for line in again.splitlines() if line.startswith("perplexity: measured before, nothing changed")]
    assert re.search(r"; perplexity: sft [\d.]+; loss: sft [\d.]+;", told)
    assert "╇" not in again
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Hello", "completion": "Once upon a day"}) + "\n")
    assert "perplexity: measuring sft" in zkit(*words)
    assert len(list((tmp_path / "out").glob("perplexity-*/evaluation.json"))) == 2


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"question_id": 1, "category": "writing", "turns": ["Tell me of a cat.", "And of a dog."]},
        {"question_id": 2, "category": "math", "turns": ["One and one?", "And one?"], "reference": ["2", "3"]},
        {"question_id": 3, "category": "stem", "turns": ["Why rain?"]},
    ]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_judge_over_http_is_asked_once_for_each_case_though_the_evaluation_is_cut_short(run: Path, shared: Path, questions: Path):
    judge = Judge(shared / "models" / "stories260k")
    with Loopback(judge) as server:

        def suites(failed: float) -> str:
            text = JUDGED.format(shared=shared, url=server.base_url, folder=questions, failed=failed)
            (questions / "suites.toml").write_text(text)
            return str(questions / "suites.toml")

        judge.left = 4
        said = zkit("evaluate", run, "--suite", suites(0.0), code=1)
        assert "the answers so far are kept" in said
        answered = sum(server.answered.values())
        assert answered == 4
        judge.left = 10**9
        said = zkit("evaluate", run, "--suite", suites(0.0))
        # Each request once, and none of those before again: five pairs in both orders, five grades and five comparisons in both orders.
        assert set(server.answered.values()) == {1}
        assert sum(server.answered.values()) <= 2 * 5 + 2 * 5 + 2 * 5
        asked = sum(server.asked.values())
        again = zkit("evaluate", run, "--suite", suites(0.0), "--output", questions / "elsewhere")
        assert sum(server.asked.values()) == asked
    assert all(title in again for title in ("Win rates", "MT-Bench", "MT-Bench categories"))
    # What was found of the run stands in its report at once; what was written elsewhere does not.
    assert f"report   {run / 'report.md'}" in said
    assert "report" not in again
    assert "MT-Bench" in (run / "report.md").read_text("utf-8")
    check_files(next((run / "evaluations").glob("mt-bench-*")))
    lines = [json.loads(line) for line in (next((run / "evaluations").glob("win-rate-*")) / "judgements.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert all(line["value"] in (0, 0.5, 1) for line in lines)


def check_files(folder: Path) -> None:
    """FastChat's formats, and its averages of them."""
    answers = [json.loads(line) for line in (folder / "model_answer" / "dpo.jsonl").read_text().splitlines()]
    assert [len(answer["choices"][0]["turns"]) for answer in answers] == [2, 2, 1]
    assert set(answers[0]) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    grades = [json.loads(line) for line in (folder / "model_judgment" / "loopback_single.jsonl").read_text().splitlines()]
    assert len(grades) == 2 * 5
    second = {(row["question_id"], row["judge"][1]) for row in grades if row["turn"] == 2}
    assert second == {(1, "single-v1-multi-turn"), (2, "single-math-v1-multi-turn")}
    assert all("<reference solution 2>\n3\n" in row["user_prompt"] for row in grades if row["question_id"] == 2 and row["turn"] == 2)
    pairs = [json.loads(line) for line in (folder / "model_judgment" / "loopback_pair.jsonl").read_text().splitlines()]
    assert len(pairs) == 5
    assert all({row["g1_winner"], row["g2_winner"]} <= {"model_1", "model_2", "tie"} for row in pairs)
    facts = json.loads((folder / "evaluation.json").read_text())
    table = {each["title"]: each["rows"] for each in facts["evaluations"]}
    of_dpo = [row["score"] for row in grades if row["model"] == "dpo"]
    assert table["MT-Bench"]["dpo"]["score"] == pytest.approx(sum(of_dpo) / len(of_dpo))
    assert set(table["MT-Bench categories"]["dpo"]) == {"writing", "math", "stem"}
    assert table["MT-Bench"]["dpo"]["win rate"] + table["MT-Bench"]["sft"]["win rate"] == pytest.approx(1)


def test_models_of_no_run_are_measured_beside_those_of_one(run: Path, shared: Path, tmp_path: Path):
    weights = shared / "models" / "stories260k"
    rows = f"[{PAIRS.format(shared=shared).replace('limit = 16', 'limit = 8')}]"
    suite = f"preference:data={rows},max_length=512,bad_rows=0.6,reference=stories260k"
    keys = ("--model", "dtype=float32", "--model", "template=zephyr")
    zkit("evaluate", weights, run / "dpo", run, "--stage", "sft", "--suite", suite, *keys, code=2)
    zkit("evaluate", weights, run / "dpo", "--suite", suite, "--output", tmp_path / "out", *keys)
    (facts,) = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*/evaluation.json")]
    rows_of = facts["evaluations"][0]["rows"]
    assert list(rows_of) == ["stories260k", "run/dpo"]
    assert rows_of["stories260k"]["reward accuracy"] is None
    assert rows_of["stories260k"]["likelihood accuracy"] is not None
    assert rows_of["run/dpo"]["margin"] is not None


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["nowhere/at/all", "--suite", "lm-eval"], 2, "there is no such folder"),
        (["RUN", "--suite", "perplexty"], 2, "did you mean `perplexity`"),
        (["RUN", "--stage", "spo", "--suite", "lm-eval"], 2, "has no trained stage `spo`; did you mean"),
        (["RUN", "--suite", 'mt-bench:judge={use="openai",model="m",base_url="http://127.0.0.1:9/v1"}'], 1, "needs `questions`; MT-Bench"),
        (["RUN", "--model", "dtype=float32", "--suite", "lm-eval"], 2, "is of a run, whose preset says how its models are loaded"),
        (["RUN/dpo", "--stage", "sft", "--suite", "lm-eval"], 2, "is of one stage already; give the run's folder"),
        (["RUN", "--suite", "alpaca-eval"], 1, "tatsu-lab/alpaca_eval"),
    ],
)
def test_what_cannot_be_measured_is_told_before_a_model_is_loaded(words, code, told, run):
    assert told in zkit("evaluate", *[word.replace("RUN", str(run)) for word in words], code=code)

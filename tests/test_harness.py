"""The language model evaluation harness on our loaded model gives the numbers that its own gives on the folder."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import backend
from small_model import small_weights
from toys import Listener
from zkit_evaluation.harness import LmEval, figures

from zephyr_kit import ZkitError
from zephyr_kit.answers import Answers
from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.protocols import Evaluation, Start
from zephyr_kit.subjects import Subject

INSTALLED = "lm_eval is not installed: pip install 'zephyr-kit[eval]'"
QUESTIONS = [
    ("Once upon a time there was a", [" cat", " mountain of gold", " dog who sang"], 0, " little"),
    ("Lily liked to play in the", [" park", " kitchen with a spoon", " x"], 2, " park"),
    ("Tom saw a big", [" red ball", " ball", " sea and the sun"], 1, " dog"),
    ("The sun was", [" hot", " not there", " happy to see them all"], 0, " very"),
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
fewshot_split: test
output_type: {kind}
{more}
"""
METRIC = "  - {{metric: {0}, aggregation: {1}, higher_is_better: true}}\n"
CHOICE = 'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: right\nmetric_list:\n'
LAST = 'doc_to_text: "{{question}}"\ndoc_to_target: "{{last}}"\nmetric_list:\n'
ROLLING = 'doc_to_text: ""\ndoc_to_target: "{{long}}"\nmetric_list:\n'
WRITING = 'generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false}\n' + LAST
KINDS = {
    "local_choice": ("multiple_choice", CHOICE, [("acc", "mean"), ("acc_norm", "mean")]),
    "local_last": ("loglikelihood", LAST, [("acc", "mean"), ("perplexity", "perplexity")]),
    "local_rolling": ("loglikelihood_rolling", ROLLING, [("word_perplexity", "weighted_perplexity"), ("bits_per_byte", "bits_per_byte")]),
    "local_writing": ("generate_until", WRITING, [("chrf", "chrf")]),
}


@pytest.fixture(scope="module")
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_weights(request, tmp_path_factory)


@pytest.fixture
def subject(weights: Path, tmp_path: Path) -> Iterator[Subject]:
    answers = Answers(tmp_path / "answers")
    yield Subject(backend(weights), Start(), torch.device("cpu"), answers, Listener())
    answers.close()


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Task files, in lm_eval's format; the text of one is longer than the model has positions."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": q, "choices": c, "right": r, "last": last, "long": f"{q}{last}. " * 60} for q, c, r, last in QUESTIONS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, (kind, text, metrics) in KINDS.items():
        more = text + "".join(METRIC.format(*metric) for metric in metrics)
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, rows=folder / "rows.jsonl", kind=kind, more=more))
    return folder


def directly(weights: Path, tasks: Path, fewshot: int, *, names: Sequence[str] = tuple(KINDS), chat: bool = False) -> dict[str, Any]:
    """What lm_eval's own model gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        found: Any = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(weights), "dtype": "float32"},
            tasks=list(names),
            num_fewshot=fewshot,
            apply_chat_template=chat,
            task_manager=manager,
            device="cpu",
            batch_size=3,
            log_samples=False,
            bootstrap_iters=0,
        )
    results: dict[str, Any] = found["results"]
    return results


@pytest.mark.slow
def test_every_kind_of_request_gives_the_numbers_of_lm_eval_itself(weights: Path, tasks: Path, subject: Subject, tmp_path: Path):
    pytest.importorskip("lm_eval", reason=INSTALLED)
    suite = LmEval(tasks=tuple(KINDS), include=str(tasks), fewshot=1)
    evaluation = suite.evaluate({"tiny": subject}, subject.tokenizer, tmp_path / "out")
    assert isinstance(evaluation, Evaluation)
    wanted = {f"{task} {name}": value for task, found in directly(weights, tasks, 1).items() for name, value, _ in figures(found)}
    assert evaluation.rows["tiny"] == pytest.approx(wanted, rel=2e-4, abs=1e-6)
    assert len(wanted) == 7
    assert set(evaluation.columns) == set(wanted)
    # What was asked is kept: a second time nothing is, so the model is not needed.
    kept = list((tmp_path / "out" / "requests").glob("*.db"))
    assert len(kept) == 2  # one of answers to tasks that ask for the likeliest token, one to those that do not
    again = suite.evaluate({"tiny": subject}, subject.tokenizer, tmp_path / "out")
    assert isinstance(again, Evaluation)
    assert again.rows == evaluation.rows


def test_through_the_chat_template_it_writes_and_chooses_as_lm_eval_has_it(weights: Path, tasks: Path, subject: Subject, tmp_path: Path):
    pytest.importorskip("lm_eval", reason=INSTALLED)
    shutil.copytree(weights, tmp_path / "templated")
    subject.tokenizer.tokens.save_pretrained(tmp_path / "templated")
    names = ("local_writing", "local_choice")
    suite = LmEval(tasks=names, include=str(tasks), fewshot=1, chat=True)
    evaluation = suite.evaluate({"tiny": subject}, subject.tokenizer, tmp_path / "out")
    assert isinstance(evaluation, Evaluation)
    found = directly(tmp_path / "templated", tasks, 1, names=names, chat=True)
    wanted = {f"{task} {name}": value for task in names for name, value, _ in figures(found[task])}
    assert evaluation.rows["tiny"] == pytest.approx(wanted, rel=2e-4, abs=1e-6)
    plain = replace(suite, chat=False).evaluate({"tiny": subject}, subject.tokenizer, tmp_path / "plain")
    assert isinstance(plain, Evaluation)
    assert plain.rows != evaluation.rows


def test_a_task_that_there_is_not_is_told_with_one_that_there_is(tasks: Path, subject: Subject, tmp_path: Path, monkeypatch):
    pytest.importorskip("lm_eval", reason=INSTALLED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from zkit_evaluation.harness_model import Asking, Tasks

    alone = Tasks(include_path=str(tasks), include_defaults=False)
    monkeypatch.setattr(Asking, "of", classmethod(lambda cls, names, include, settings: cls(alone, settings)))
    suite = LmEval(tasks=("local_choise",), include=str(tasks))
    with pytest.raises(ZkitError, match="lm_eval has no task 'local_choise'; did you mean `local_choice`"):
        suite.evaluate({"tiny": subject}, subject.tokenizer, tmp_path / "out")


def test_the_papers_benchmarks_have_the_leaderboards_settings():
    suite = LmEval()
    assert suite.tasks == ("arc", "hellaswag", "mmlu", "truthfulqa")
    results = {
        "arc": {"arc_challenge": {"acc,none": 0.5, "acc_norm,none": 0.62, "acc_norm_stderr,none": 0.01}},
        "hellaswag": {"hellaswag": {"acc_norm,none": 0.84, "acc_norm_stderr,none": "N/A"}},
        "mmlu": {"mmlu": {"acc,none": 0.61}},
        "truthfulqa": {"truthfulqa_mc2": {"acc,none": 0.57}},
    }
    row, intervals = suite._row(results)
    assert row == {"arc": 0.62, "hellaswag": 0.84, "mmlu": 0.61, "truthfulqa": 0.57, "average": pytest.approx(0.66)}
    assert intervals == {"arc": pytest.approx((0.6004, 0.6396))}
    assert suite._meaning("arc") == "acc_norm of arc_challenge, 25 examples in each question"


def test_the_likeliest_token_is_the_one_that_is_written(subject: Subject):
    """Greedy text is likeliest throughout, and no longer when a token is another."""
    import numpy as np

    with subject() as policy:
        prompt = np.array(subject.tokenizer.tokens.encode("Once upon a time there was"), np.int32)
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(subject.backend.weights).eval()
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0)[0]
        greedy = whole[len(prompt) :].numpy().astype(np.int32)
        other = greedy.copy()
        other[3] = (other[3] + 1) % 200 + 5
        tree = Tree(prompt, (greedy, other), (np.ones(6, np.bool_), np.ones(6, np.bool_)))
        first, second = policy.likeliest(lay_out([tree])).view(2, 6).tolist()
    assert all(first)
    assert second[:3] == [True] * 3
    assert not second[3]


def greedy_token(subject: Subject, text: str) -> str:
    """The word that the model would write."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(subject.backend.weights).eval()
    tokens = subject.tokenizer.tokens
    ids = tokens(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = int(model(ids).logits[0, -1].argmax())
    return tokens.decode([*ids[0].tolist(), best], skip_special_tokens=True).removeprefix(text)


def test_a_choice_made_before_does_not_answer_whether_it_is_the_likeliest(subject: Subject, tmp_path: Path, capsys: Any):
    pytest.importorskip("lm_eval", reason=INSTALLED)
    question = "Once upon a time there was a"
    word = greedy_token(subject, question)
    (tmp_path / "tasks").mkdir()
    row = {"question": question, "choices": [word, f"{word}{word}"], "right": 0, "last": word}
    (tmp_path / "tasks" / "rows.jsonl").write_text((json.dumps(row) + "\n") * 2)
    for name in ("local_choice", "local_last"):
        kind, text, _ = KINDS[name]
        plain = 'target_delimiter: ""\n'
        task = TASK.format(name=name, rows=tmp_path / "tasks" / "rows.jsonl", kind=kind, more=plain + text + METRIC.format("acc", "mean"))
        (tmp_path / "tasks" / f"{name}.yaml").write_text(task)

    def rows(*tasks: str) -> Any:
        suite = LmEval(tasks=tasks, include=str(tmp_path / "tasks"), fewshot=0)
        evaluation = suite.evaluate({"tiny": subject}, subject.tokenizer, tmp_path / "-".join(tasks))
        assert isinstance(evaluation, Evaluation)
        return evaluation.rows["tiny"]

    capsys.readouterr()
    assert rows("local_last")["local_last acc"] == 1.0
    assert rows("local_choice", "local_last")["local_last acc"] == 1.0
    assert "it/s" not in capsys.readouterr().err


def test_a_text_that_leaves_no_room_to_write_is_cut_from_the_left(subject: Subject):
    pytest.importorskip("lm_eval", reason=INSTALLED)
    from types import SimpleNamespace

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from zkit_evaluation.harness_model import PolicyLM, Tasks

    tokens = subject.tokenizer.tokens
    long, keys = "Lily liked to play in the park. é " * 80, {"until": ["."], "max_gen_toks": 12}
    with subject() as policy:
        model = PolicyLM(policy, tokens, object.__new__(Tasks), max_length=subject.max_length or 512, shares_prompts=True)
        assert len(tokens.encode(long)) > model.max_length
        (written,) = model.generate_until([SimpleNamespace(args=(long, keys))])
        last = model._last(long, model.max_length - 12)
        assert long.endswith(last)
        assert model.max_length - 16 <= len(tokens.encode(last)) <= model.max_length - 12
        assert [written] == model.generate_until([SimpleNamespace(args=(last, keys))])
        assert model._last("é" * 9, 1) == "" or len(tokens.encode(model._last("é" * 9, 1))) <= 1
        with pytest.raises(ZkitError, match="512 tokens are to be written, and the model has"):
            model.generate_until([SimpleNamespace(args=(long, {"max_gen_toks": 512}))])

"""MT-Bench's rules: scores, winners and aggregates are FastChat's, on judgements written in its formats."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import Listener
from zkit_evaluation.examination import Examination
from zkit_evaluation.fast_chat import (
    Question,
    category_scores,
    pair_results,
    rating,
    read_answers,
    read_questions,
    single_scores,
    winner,
    winners,
)
from zkit_evaluation.judge_prompts import all_names, own_prompts, prompt_name, read_prompts
from zkit_evaluation.mt_bench import Examiner, MtBench
from zkit_evaluation.replies import write_lines

from zephyr_kit import ZkitError
from zephyr_kit.answers import Answers
from zephyr_kit.protocols import Bench, Reply, Request


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("Good. Rating: [[8]]", 8),
        ("[[7.5]] and later [[3]]", 7.5),
        ("only [6] in single brackets", 6),
        ("[5] before, but [[9]] in double ones", 9),
        ("[[10.]]", 10),
        ("Rating: [[eight]]", -1),
        ("[[ 8 ]]", -1),
        ("", -1),
        ("$ERROR$", -1),
    ],
)
def test_a_grade_is_found_where_fastchat_finds_it(said, score):
    assert rating(said) == score


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("So [[A]] it is", "A"),
        ("[[B]]", "B"),
        ("[[C]]", "tie"),
        ("[[B]], no, [[A]]", "A"),  # the first letter of the alphabet, not the first in the text
        ("A is better", "error"),
        ("[A]", "error"),
    ],
)
def test_a_winner_is_told_by_its_letter(said, verdict):
    assert winner(said, "[[A]]") == verdict


@pytest.mark.parametrize(
    ("said", "verdict"),
    [("[[8,7]]", "A"), ("[[7, 8]]", "B"), ("[[7.0, 7.1]]", "tie"), ("[[7.0, 7.2]]", "B"), ("[6,9]", "B"), ("[[7;8]]", "error")],
)
def test_a_winner_is_told_by_two_ratings(said, verdict):
    assert winner(said, "[[rating_a,rating_b]]") == verdict


def test_the_second_game_is_with_the_sides_swapped():
    assert winners("A", "A") == ("model_1", "model_2")
    assert winners("B", "A") == ("model_2", "model_2")
    assert winners("tie", "error") == ("tie", "error")


# In FastChat's formats, as gpt-4_single.jsonl and gpt-4_pair.jsonl have them, without the texts.
SINGLES = [
    {"question_id": 81, "model": "ours", "judge": ["gpt-4", "single-v1"], "score": 9, "turn": 1, "tstamp": 1.0},
    {"question_id": 81, "model": "ours", "judge": ["gpt-4", "single-v1-multi-turn"], "score": 6, "turn": 2, "tstamp": 1.0},
    {"question_id": 111, "model": "ours", "judge": ["gpt-4", "single-math-v1"], "score": -1, "turn": 1, "tstamp": 1.0},
    {"question_id": 111, "model": "ours", "judge": ["gpt-4", "single-math-v1-multi-turn"], "score": 1, "turn": 2, "tstamp": 1.0},
    {"question_id": 81, "model": "theirs", "judge": ["gpt-4", "single-v1"], "score": 7.5, "turn": 1, "tstamp": 1.0},
]


def pair(question: int, first: str, second: str, games: tuple[str, str]) -> dict[str, object]:
    return {"question_id": question, "model_1": first, "model_2": second, "g1_winner": games[0], "g2_winner": games[1], "turn": 1}


PAIRS = [
    pair(81, "ours", "theirs", ("model_1", "model_1")),
    pair(82, "ours", "theirs", ("model_1", "model_2")),
    pair(83, "ours", "theirs", ("tie", "tie")),
    pair(84, "ours", "theirs", ("tie", "model_2")),
    pair(85, "ours", "theirs", ("model_2", "model_2")),
    pair(86, "ours", "theirs", ("model_2", "error")),
    pair(81, "ours", "third", ("model_1", "model_1")),
    pair(81, "theirs", "third", ("model_2", "model_2")),
]


def test_a_score_is_the_mean_of_all_grades_and_what_is_unread_is_left_out():
    found = single_scores(SINGLES)
    # Both turns pooled, as FastChat averages, and not the mean of the turns' means, which would be 6.25.
    assert found["ours"] == {"score": pytest.approx(16 / 3), "turn 1": 9, "turn 2": 3.5, "unread": 1}
    assert found["theirs"] == {"score": 7.5, "turn 1": 7.5, "turn 2": None, "unread": 0}
    assert category_scores(SINGLES, {81: "writing", 111: "math"})["ours"] == {"writing": 7.5, "math": 1}


def test_pairs_are_won_in_both_orders_or_tied_and_faults_count_nothing():
    found = pair_results(PAIRS)
    assert found["ours"] == {"win": 2, "loss": 1, "tie": 3, "win_rate": 2 / 6, "loss_rate": 1 / 6, "win_rate_adjusted": 3.5 / 6}
    assert found["theirs"] == {"win": 1, "loss": 2, "tie": 3, "win_rate": 1 / 6, "loss_rate": 2 / 6, "win_rate_adjusted": 2.5 / 6}
    assert found["third"]["win_rate_adjusted"] == 0.5
    beside = pair_results(PAIRS, baseline="third")
    assert sorted(beside) == ["ours", "theirs"]
    assert (beside["ours"]["win"], beside["theirs"]["loss"]) == (1, 1)


def test_our_prompts_have_fastchats_names_and_ask_for_its_verdicts():
    found = own_prompts()
    assert sorted(found) == sorted(all_names())
    for name, prompt in found.items():
        gaps = {gap for _, gap, _, _ in string.Formatter().parse(prompt.template) if gap}
        second, referenced, paired = "multi-turn" in name, "math" in name, name.startswith("pair")
        sides = ("answer_a", "answer_b") if paired else ("answer",)
        numbers = ("_1", "_2") if second else ("",)
        references = {f"ref_answer_{number}" for number in ((1, 2) if second else (1,))} if referenced else set()
        assert gaps == {f"{what}{number}" for what in ("question", *sides) for number in numbers} | references
        assert prompt.form == ("[[A]]" if paired else "[[rating]]")
        assert "{" not in prompt.fill(dict.fromkeys(gaps, "x"))
    assert prompt_name("single", referenced=True, turn=2) == "single-math-v1-multi-turn"


def test_prompts_of_fastchats_file_are_taken_as_they_stand(tmp_path: Path):
    rows = [{"name": name, "system_prompt": "s", "prompt_template": "{question}?", "output_format": "[[A]]"} for name in all_names()]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_prompts(str(tmp_path / "prompts.jsonl"))["pair-v2"].fill({"question": "Why"}) == "Why?"
    (tmp_path / "few.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ZkitError, match=r"judge_prompts\.jsonl of https://github\.com/lm-sys/FastChat"):
        read_prompts(str(tmp_path / "few.jsonl"))


def test_what_is_no_file_of_fastchats_is_told_by_file_and_line(tmp_path: Path, shared: Path):
    questions = read_questions(str(shared / "data" / "mt_bench_questions.jsonl.gz"), "")
    assert len(questions) == 80
    assert {question.temperature for question in questions} == {0.0, 0.1, 0.7}
    assert Question(1, "other", ("a",)).temperature == 0.7
    place = tmp_path / "bad.jsonl"
    for text, told in [("{\n", r"bad.jsonl:1: not JSON"), ('{"turns": []}\n', "row 1 is no question"), ("\n", "holds no questions")]:
        place.write_text(text)
        with pytest.raises(ZkitError, match=told):
            read_questions(str(place), "")
    place.write_text('{"question_id": 1, "choices": []}\n')
    with pytest.raises(ZkitError, match="no file of answers"):
        read_answers(str(place))
    with pytest.raises(ZkitError, match=r"there is no file .*; look there"):
        read_questions("nowhere.jsonl", "look there")


def test_a_line_ends_where_json_ends_it(tmp_path: Path):
    """Not at U+2028 or U+0085, which JSON lets stand in a text, and which models write."""
    said = "one\u2028two\u0085three\x0bfour\r"
    write_lines(tmp_path / "answers.jsonl", [{"question_id": 1, "choices": [{"index": 0, "turns": [said]}]}])
    assert read_answers(str(tmp_path / "answers.jsonl")) == {1: (said,)}


def test_files_are_read_before_a_model_is_asked(tmp_path: Path):
    (tmp_path / "question.jsonl").write_text('{"question_id": 1, "category": "math", "turns": ["One and one?"]}\n')
    judge = Examiner(completer=object())
    (tmp_path / "few.jsonl").write_text('{"question_id": 1, "choices": [{"turns": []}]}\n')
    few = str(tmp_path / "few.jsonl")
    for keys, told in [({}, "no reference answer to 1 questions"), ({"references": few, "answers": (few,)}, "few has no whole answer")]:
        bench = MtBench(judge=judge, questions=str(tmp_path / "question.jsonl"), **keys)
        with pytest.raises(ZkitError, match=told):
            bench.evaluate({}, None, tmp_path / "out")


class Grader:
    """A judge in words, which keeps what it said as an endpoint does."""

    def __init__(self) -> None:
        self.says = "Eight of ten."
        self.asked = 0

    def complete(self, requests: Sequence[Request], bench: Bench) -> Iterator[tuple[int, Reply]]:
        for number, request in enumerate(requests):
            said = bench.answers.get(request.dialogue[-1].content)
            if said is None:
                self.asked += 1
                said = self.says
                bench.answers.put(request.dialogue[-1].content, said)
            yield number, Reply(said)

    def fingerprint(self, bench: Bench) -> dict[str, str]:
        return {"use": "grader"}


@pytest.fixture
def examined(tmp_path: Path) -> Iterator[Callable[[Grader, float], tuple[list[Any], list[str]]]]:
    """Forty answers, to be graded with so large a share of failures."""
    rows = [{"question_id": number, "category": "stem", "turns": [f"Question {number}"]} for number in range(40)]
    write_lines(tmp_path / "question.jsonl", rows)
    answers = {"ours": dict.fromkeys(range(40), ("An answer.",))}
    with closing(Answers(tmp_path / "answers")) as kept:

        def grade(grader: Grader, max_failed: float) -> tuple[list[Any], list[str]]:
            listener = Listener()
            subject = SimpleNamespace(bench=Bench(torch.device("cpu"), kept), narrator=listener)
            judge = Examiner(completer=grader)
            bench = MtBench(judge=judge, questions=str(tmp_path / "question.jsonl"), max_failed=max_failed, grading=("single", "pairs"))
            examination = Examination(bench, {"ours": subject}, tmp_path / "out")
            return [row["score"] for row in examination.singles(answers)], listener.lines

        yield grade


def test_a_judge_that_nobody_can_read_is_refused_early_in_its_own_words_and_asked_again_when_it_is_mended(examined):
    grader = Grader()
    with pytest.raises(ZkitError) as refused:
        examined(grader, 0.05)
    told = str(refused.value)
    assert "grades: 3 of 40 requests have failed, more than max_failed = 0.05 allows" in told
    assert "3 x the judge's answer holds no verdict in the form [[rating]], with its brackets (it ends: \"Eight of ten.\")" in told
    assert grader.asked <= 3
    grader.says = "Eight of ten: [[8]]"
    assert examined(grader, 0.05) == ([8] * 40, [])
    asked = grader.asked
    assert examined(grader, 0.05)[0] == [8] * 40
    assert grader.asked == asked


def test_a_few_that_nobody_can_read_are_told_of_and_left_out(examined):
    grader = Grader()
    with pytest.raises(ZkitError):
        examined(grader, 0.0)
    grader.complete = lambda requests, bench: ((n, Reply("[[7]]" if n else "Seven.")) for n in range(len(requests)))
    scores, told = examined(grader, 0.05)
    assert sorted(scores) == [-1, -1] + [7] * 38  # the one of those before, and the first of all others
    assert "grades: 2 of 40 have failed" in told[0]

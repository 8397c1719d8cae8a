"""What dialogues have in common with each other and with exams; and all filters together, as a preset has them."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dialogues import WORDS, dialogue, story
from zkit_filters.decontaminate import Decontaminate
from zkit_filters.disclaimers import REASON
from zkit_filters.near_duplicates import NearDuplicates
from zkit_filters.shingles import shingles, word_hashes
from zkit_sources.files import Jsonl

from zephyr_kit.config import Builder
from zephyr_kit.example import Example, Removed
from zephyr_kit.plugins import Plugins
from zephyr_kit.portion import Portion
from zephyr_kit.tally import countable


def jaccard(one: str, other: str, size: int = 5) -> float:
    """By its definition."""
    sets = [{tuple(words[n : n + size]) for n in range(len(words) - size + 1)} for words in (one.split(), other.split())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def changed(text: str, count: int, draw: random.Random) -> str:
    """With so many of its words replaced."""
    words = text.split()
    for place in draw.sample(range(len(words)), count):
        words[place] = f"new{place}"
    return " ".join(words)


@pytest.mark.parametrize(("threshold", "count", "found"), [(0.8, 1, 1.0), (0.8, 60, 0.0), (0.5, 20, 1.0), (0.5, 120, 0.0)])
def test_near_duplicates_are_those_with_enough_in_common(tmp_path, threshold, count, found):
    """Well above the threshold all are found, well below it none, over texts of 400 different words in 1,000."""
    draw, near = random.Random(0), NearDuplicates(threshold=threshold)
    answers = []
    with near.memory(tmp_path, first=0) as memory:
        for number in range(40):
            text = " ".join(str(draw.randrange(400)) for _ in range(1000))
            again = changed(text, count, draw)
            assert (jaccard(text, again) > threshold + 0.1) if found else (jaccard(text, again) < threshold - 0.1)
            for place, each in enumerate((text, again)):
                answers.append(memory.meet(2 * number + place, near.look(dialogue("Well?", each)).trace, "here"))
    assert not any(answers[::2])
    assert sum(map(bool, answers[1::2])) == found * 40


def test_near_duplicates_overlook_case_punctuation_and_space(tmp_path):
    near, rows = NearDuplicates(), [dialogue("Why?", story(1)), dialogue("  why -- ", story(1).upper().replace(" ", ",\n"))]
    assert near.look(rows[0]).trace == near.look(rows[1]).trace


def test_words_are_hashed_apart():
    words = [f"{letter}{number}" for letter in "abcdéж" for number in range(5000)]
    assert len(np.unique(word_hashes(" ".join(words)))) == len(words)
    assert word_hashes("One, two").tolist() == word_hashes("  …ONE\ntwo!").tolist()
    assert word_hashes("One, two").tolist() == [int(word_hashes(word)[0]) for word in ("one", "two")]
    assert len(word_hashes("火车站在哪里")) == 6
    assert word_hashes("?! …").tolist() == word_hashes("").tolist() == []
    assert len(word_hashes("half \ud83d of a pair")) == 4
    once = word_hashes("a b c d e f")
    assert len(np.unique(np.concatenate([shingles(once, size) for size in range(1, 7)]))) == 21


def test_hashes_are_the_same_in_every_process():
    program = "from zkit_filters.shingles import word_hashes; print(word_hashes('Été 火 x1').tolist())"
    said = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        said.add(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment).stdout)
    assert len(said) == 1
    assert "".join(said).strip()


@pytest.fixture(scope="module")
def examined(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Decontaminate:
    """Against GSM8K and MT-Bench, whole."""
    sources = [Jsonl(str(shared / "data" / f"{name}.jsonl.gz"), format="any_text") for name in ("math_gsm8k_test", "mt_bench_questions")]
    return Decontaminate(tuple(sources))


def test_real_exam_questions_are_found_in_dialogues(shared, examined):
    with gzip.open(shared / "data" / "math_gsm8k_test.jsonl.gz", "rt", encoding="utf-8") as file:
        questions = [json.loads(line)["question"] for line in file]
    hidden = [dialogue("Hello.", "Hi.", f"My homework says: «{question.upper()}» Help me.", "Yes.") for question in questions]
    assert {examined.look(row).reason for row in hidden} == {f"shares 10 words with {shared / 'data' / 'math_gsm8k_test.jsonl.gz'}"}
    with gzip.open(shared / "data" / "mt_bench_questions.jsonl.gz", "rt", encoding="utf-8") as file:
        turns = [turn for line in file for turn in json.loads(line)["turns"] if len(turn.split()) >= 12]
    assert all(examined.look(dialogue("Hello.", "Hi.", turn, "Yes.")).example is None for turn in turns)


def test_ordinary_dialogues_hold_no_exam_question(shared, examined):
    rows = [row for row in Jsonl(str(shared / "data" / "chat_sgd.jsonl.gz")).rows() if isinstance(row, Example)]
    assert sum(examined.look(row).example is None for row in rows) <= 0.001 * len(rows)


def test_all_in_a_preset_as_the_sieve_runs_it(shared, tmp_path):
    """From a table to the rows that are left: every row accounted for, the hidden question and the repeated row gone."""
    exam = shared / "data" / "math_gsm8k_test.jsonl.gz"
    with gzip.open(exam, "rt", encoding="utf-8") as file:
        question = json.loads(file.readline())["question"]

    def draw(number: int) -> str:
        return " ".join(random.Random(number).choices(WORDS.split(), k=80))

    rows = [{"messages": _messages("Hello. how are you?", draw(number))} for number in range(30)]
    rows += [rows[3], {"messages": _messages(question, "Let me think.")}, {"messages": _messages("And you?", "I don't have feelings.")}]
    german = _messages("Wie spät ist es jetzt in der Stadt?", "Es ist leider schon sehr spät.")
    rows += [{"messages": _messages("Why?", "So.")}, {"messages": german}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    table = {
        "use": "jsonl",
        "path": str(path),
        "filters": [
            {"use": "length", "min_words": 3},
            {"use": "language", "keep": ["en"]},
            "disclaimers",
            {"use": "decontaminate", "against": [{"use": "jsonl", "path": str(exam), "format": "any_text"}]},
            {"use": "near_duplicates", "threshold": 0.7},
            {"use": "truecase", "roles": ["user"]},
        ],
    }
    portion = Builder(Plugins().offers, "preset.toml").build(Portion, table, "data[0]")
    assert not [problem for each in portion.filters for problem in each.problems()]
    left = list(portion.rows())
    removed = [(row.by, countable(row.reason)) for row in left if isinstance(row, Removed)]
    assert sorted(removed) == [
        ("filter decontaminate", f"shares 10 words with {exam}"),
        ("filter disclaimers", REASON),
        ("filter language", "language de"),
        ("filter length", "fewer than 3 words"),
        ("filter near_duplicates", "near-duplicate of an earlier row"),
    ]
    kept = [row for row in left if isinstance(row, Example)]
    assert len(kept) == 30
    assert {row.prompt[0].content for row in kept} == {"Hello. How are you?"}
    miniatures = [each.miniature(tmp_path) for each in portion.filters]
    assert not [problem for each in miniatures for problem in each.problems()]


def _messages(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]

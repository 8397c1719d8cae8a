"""Binarisation: pairs written by hand under every rule, chance that is chance, and every completion accounted for."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from zkit_sources.ultra import UltraFeedback

from zephyr_kit.binarise import Binarise, Paired
from zephyr_kit.config import Builder, PresetError
from zephyr_kit.example import Example, ExampleError, Message, Removed, check

RULES = ("best_random", "best_worst", "all_pairs", "ranked", "best")
MISSING = object()


def rated(source: str, *completions: tuple[str, Any, Any], models: int = 4) -> dict[str, Any]:
    """A row of raw UltraFeedback from (response, overall score, ratings of four aspects)."""
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    written = []
    for response, score, ratings in completions:
        notes = {aspect: {"Rating": rating, "Rationale": "So."} for aspect, rating in zip(aspects, ratings, strict=False)}
        one = {"model": "m", "principle": "honesty", "custom_system_prompt": "Be honest.", "response": response, "critique": "Hm."}
        written.append({**one, "annotations": notes, **({} if score is MISSING else {"overall_score": score})})
    return {"source": source, "instruction": f"Ask {source}", "models": ["m"] * models, "completions": written}


ROWS = [
    # 1: the plain case.
    rated("flan", ("A", 3.0, "2222"), ("B", 9.0, "5555"), ("C", 5.0, "3333"), ("D", 7.0, "4444")),
    # 2: scores as text, "N/A" and missing.
    rated("flan", ("A", "6", "3333"), ("B", "N/A", "3333"), ("C", 8, "4444"), ("D", MISSING, "2222")),
    # 3: a 1 stored as 10: its aspects' mean is 1.5.
    rated("flan", ("A", 10.0, "1212"), ("B", 4.0, "3333"), ("C", 6.0, "4444"), ("D", 2.0, "2222")),
    # 4: 10 with a mean of 14 / 3 stays, with 3 nothing tells, without ratings it stays: B and D tie.
    rated("flan", ("A", 7.0, "4444"), ("B", 10.0, ["5", "5", "N/A", "4"]), ("C", 10.0, "3333"), ("D", 10.0, "")),
    # 5: two of them say nothing.
    rated("flan", ("", 9.0, "5555"), (" \n", 8.0, "4444"), ("C", 5.0, "3333"), ("D", 2.0, "1111")),
    # 6: B repeats A, with a better score.
    rated("flan", ("Same", 4.0, "2222"), ("Same ", 9.0, "5555"), ("C", 6.0, "3333"), ("D", 2.0, "1111")),
    # 7: nothing is better than anything.
    rated("flan", ("A", 5.0, "3333"), ("B", 5.0, "3333"), ("C", 5.0, "3333"), ("D", 5.0, "3333")),
    # 8: nothing to compare with.
    rated("flan", ("A", 8.0, "4444")),
    # 9: fewer completions than models, and the worst tie.
    rated("flan", ("A", 2.0, "1111"), ("B", 2.0, "2222"), ("C", 6.0, "3333")),
    # 10: from an evaluation set.
    rated("truthful_qa", ("A", 1.0, "1111"), ("B", 2.0, "2222"), ("C", 3.0, "3333"), ("D", 4.0, "4444")),
    # 11: the critique and the aspects disagree; D's aspects were not rated.
    rated("flan", ("A", 8.0, "2222"), ("B", 4.0, "5555"), ("C", 6.0, ["3", "N/A", "4", "3"]), ("D", 5.0, ["N/A"] * 4)),
    # 12: no score that is a number.
    rated("flan", ("A", "N/A", ""), ("B", None, ""), ("C", "", ""), ("D", True, "")),
]

# What each rule may give for each row: completions by letter, the better one first.
BEST_RANDOM = ["BA BC BD", "CA", "CB CD CA", "BA DA", "CD", "CA CD", "", "", "CA CB", None, "AB AC AD", ""]
BEST_WORST = ["BA", "CA", "CA", "BA DA", "CD", "CD", "", "", "CA CB", None, "AB", ""]
BEST = ["B", "C", "C", "B D", "C", "C", "A B C D", "A", "C", None, "A", ""]
ALL_PAIRS = ["BD BC BA DC DA CA", "CA", "CB CD CA BD BA DA", "BA DA", "CD", "CA CD AD", "", "", "CA CB", None, "AC AD AB CD CB DB", ""]
RANKED = ["BDCA", "CA", "CBDA", "", "CD", "CAD", "", "", "", None, "ACDB", ""]
# Where equal scores may be set against each other, these differ.
ORDERED = "AB AC AD BA BC BD CA CB CD DA DB DC"
TIES_KEPT = {
    "best_random": {4: "BA BD DA DB", 7: ORDERED},
    "best_worst": {7: ORDERED},
    "all_pairs": {4: "BD BA DA", 7: "AB AC AD BC BD CD", 9: "CA CB AB"},
    "ranked": {4: "BDA", 7: "ABCD", 9: "CAB"},
}
HAND = dict(zip(RULES, (BEST_RANDOM, BEST_WORST, ALL_PAIRS, RANKED, BEST), strict=True))
DRAWN = ("best_random", "best_worst", "best")


@pytest.fixture
def source(tmp_path: Path) -> UltraFeedback:
    path = tmp_path / "rated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return UltraFeedback(str(path), drop_sources=("truthful_qa",))


def letters(example: Example) -> str:
    """An example's completions as letters of the row's, from its origin."""
    (held,) = re.findall(r"\(([\d over]+)\)$", example.origin)
    return "".join("ABCDEFGHIJKLMNO"[int(number) - 1] for number in held.split(" over "))


def outcomes(source: UltraFeedback, rule: Binarise) -> list[list[str] | None]:
    """What came of each row; None where its source took it out."""
    rows = enumerate(source.rows())
    made = [None if isinstance(row, Removed) else rule.apply(row, number) for number, row in rows if isinstance(row, Example | Removed)]
    return [None if paired is None else [letters(example) for example in paired.examples] for paired in made]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ties", ["drop", "keep"])
def test_pairs_written_by_hand(source: UltraFeedback, rule: Any, ties: Any) -> None:
    if rule == "best" and ties == "keep":
        pytest.skip("the best alone is set against nothing")
    rows = {**dict(enumerate(HAND[rule], 1)), **(TIES_KEPT[rule] if ties == "keep" else {})}
    wanted = [None if row is None else row.split() for row in rows.values()]
    if rule not in DRAWN:
        assert outcomes(source, Binarise(rule, ties=ties)) == wanted
        return
    drawn = [outcomes(source, Binarise(rule, ties=ties, seed=seed)) for seed in range(200)]
    assert len(drawn[0]) == len(wanted)
    for number, row in enumerate(wanted):
        found = [one[number] for one in drawn]
        assert all(one is None for one in found) == (row is None)
        assert all(one is None or len(one) == min(1, len(row or [])) for one in found)
        assert {pair for one in found for pair in one or ()} == set(row or ()), f"row {number + 1}"


def test_margin(source: UltraFeedback) -> None:
    """Row by row by hand, for a least difference of 4."""
    every = [["BC", "BA", "DA"], [], ["CD", "CA"], [], [], ["CD"], [], [], ["CA", "CB"], None, ["AB"], []]
    assert outcomes(source, Binarise("all_pairs", margin=4.0)) == every
    lowest = [["BA"], [], ["CA"], [], [], ["CD"], [], [], ["CA"], None, ["AB"], []]
    for number, row in enumerate(outcomes(source, Binarise("best_worst", margin=4.0))):
        assert row in ([["CA"], ["CB"]] if number == 8 else [lowest[number]])
    assert not any(outcomes(source, Binarise("ranked", margin=4.0)))
    for scores, margin in (((4.3, 4.2), 0.1), ((11 / 3, 10 / 3), 1 / 3)):
        close = Example((), tuple((Message("assistant", text),) for text in "ab"), scores, "x")
        assert letters(Binarise(margin=margin).apply(close, 0).examples[0]) == "AB"
        assert Binarise(margin=margin + 0.01).apply(close, 0).reason == f"no score is below the best by {margin + 0.01:g} or more"


def test_scores_by_mean_by_aspect_and_unrepaired(source: UltraFeedback) -> None:
    def pairs(number: int, **keys: Any) -> list[str] | None:
        return outcomes(UltraFeedback(source.path, **keys), Binarise("ranked", ties="keep"))[number - 1]

    assert pairs(11, score="mean") == ["BCA"]
    assert pairs(11, score="truthfulness") == ["BCA"]
    assert pairs(11, score="honesty") == ["BA"]
    assert pairs(3, repair=False) == ["ACBD"]
    assert pairs(4, repair=False) == ["BCDA"]
    assert pairs(10) == ["DCBA"]


def test_what_is_left_out_and_why(source: UltraFeedback) -> None:
    made = {number: Binarise().apply(row, number) for number, row in enumerate(source.rows(), 1) if isinstance(row, Example)}
    left_out = {number: paired.left_out for number, paired in made.items() if paired.left_out}
    blank, unscored = ("blank text",) * 2, ("no score",)
    assert left_out == {2: unscored * 2, 4: unscored, 5: blank, 6: ("the same text as another",), 12: unscored * 4}
    reasons = {number: paired.reason for number, paired in made.items() if paired.reason}
    assert reasons == {
        7: "no score is below the best at all",
        8: "one of its completions can be considered",
        12: "none of its completions can be considered",
    }
    assert [number for number, paired in made.items() if not paired.examples] == list(reasons)
    ranked = Binarise("ranked", margin=2).apply(next(row for row in source.rows() if isinstance(row, Example)), 0)
    assert ranked.examples
    assert Binarise("ranked", margin=3).apply(ranked.examples[0], 0).reason == "two neighbours in the ranking do not differ by 3 or more"


def test_what_an_example_holds(source: UltraFeedback) -> None:
    first = next(row for row in source.rows() if isinstance(row, Example))
    pair = Example(first.prompt, (first.completions[1], first.completions[0]), (9.0, 3.0), f"{source.path}:1 (2 over 1)")
    assert Binarise("best_worst").apply(first, 0) == Paired((pair,))
    (whole,) = Binarise("ranked").apply(first, 0).examples
    assert (whole.scores, whole.origin) == ((9.0, 7.0, 5.0, 3.0), f"{source.path}:1 (2 over 4 over 3 over 1)")
    (best,) = Binarise("best").apply(first, 0).examples
    assert (best.completions, best.scores, best.origin) == ((first.completions[1],), (9.0,), f"{source.path}:1 (2)")


def test_examples_of_other_shapes() -> None:
    asked = (Message("user", "U"),)
    two = ((Message("assistant", "A"), Message("user", "V"), Message("assistant", " ")), (Message("assistant", "A"),))
    assert Binarise().apply(Example(asked, two, (2.0, 1.0)), 0).left_out == ("blank text",)
    assert Binarise("best").apply(Example(asked, ((), two[1]), (2.0, 1.0), "o"), 0).examples[0].origin == "o (2)"
    none = "none of its completions can be considered"
    assert Binarise().apply(Example(asked, two[1:] + two[1:]), 0) == Paired((), ("no score",) * 2, none)
    assert Binarise().apply(Example(asked, ()), 0) == Paired((), (), none)
    # A score that is none does not take a text's place, and infinity is none.
    same = Example(asked, (two[1], two[1], (Message("assistant", "B"),)), (math.inf, 3.0, 1.0), "o")
    assert Binarise().apply(same, 0).left_out == ("no score",)
    assert Binarise().apply(same, 0).examples[0].origin == "o (2 over 3)"
    with pytest.raises(ExampleError, match=r"1 score\(s\) for 2 completion\(s\)"):
        Binarise().apply(Example(asked, two, (1.0,)), 0)
    with pytest.raises(ExampleError, match="is bool True, not text"):
        Binarise().apply(Example(asked, ((Message("assistant", True),), two[1]), (1.0, 2.0)), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"rule": "best_of"}, "best_random"),
        ({"margin": -1.0}, "margin"),
        ({"margin": math.inf}, "finite number"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"margin": 2.0, "ties": "keep"}, "`margin` = 2 rules out"),
        ({"rule": "best", "ties": "keep"}, "compares nothing"),
        ({"rule": "best", "margin": 1.0}, "compares nothing"),
    ],
)
def test_keys_are_checked(table: dict[str, Any], words: str) -> None:
    with pytest.raises(PresetError, match=re.escape(words)):
        Builder({}, "p.toml").build(Binarise, table, "binarise")


def test_the_highest_seed_draws() -> None:
    built = Builder({}, "p.toml").build(Binarise, {"seed": 2**63 - 1}, "binarise")
    replies = tuple((Message("assistant", text),) for text in "ABC")
    assert len(built.apply(Example((), replies, (3.0, 2.0, 1.0)), 10**9).examples) == 1


# 1 % of samples exceed these: the chi-square distribution with so many degrees of freedom.
ONE_PERCENT = {2: 9.21, 3: 11.34}


def chi_square(counts: list[float], expected: list[float]) -> float:
    return sum((count - wanted) ** 2 / wanted for count, wanted in zip(counts, expected, strict=True))


@pytest.fixture(scope="module")
def arena(shared: Path) -> list[Example]:
    rows = list(UltraFeedback(str(shared / "data" / "feedback_arena.jsonl.gz")).rows())
    assert all(isinstance(row, Example) for row in rows)
    return [row for row in rows if isinstance(row, Example)]


def first_of_each_score(example: Example, count: int) -> Example | None:
    """The first `count` completions that say something, no two of equal score; in the order of the file."""
    scores: tuple[float, ...] = example.scores or ()
    kept: dict[float, int] = {}
    for number, (completion, score) in enumerate(zip(example.completions, scores, strict=True)):
        if completion[0].content.strip():
            kept.setdefault(score, number)
    numbers = list(kept.values())[:count]
    picked = Example(example.prompt, tuple(example.completions[n] for n in numbers), tuple(scores[n] for n in numbers))
    return picked if len(numbers) == count else None


def places(examples: list[Example], seed: int) -> list[int]:
    """The rank below the best of each rejected completion, from 0."""
    rule = Binarise(seed=seed)
    pairs = [pair for row, example in enumerate(examples) for pair in rule.apply(example, row).examples]
    assert len(pairs) == len(examples)
    lower = [sorted(set(example.scores or ()), reverse=True)[1:] for example in examples]
    return [scores.index((pair.scores or ())[1]) for pair, scores in zip(pairs, lower, strict=True)]


def test_every_lower_rank_is_as_likely(arena: list[Example]) -> None:
    """As in UltraFeedback: four completions, of which each of the three lower is rejected in a third of the rows."""
    fours = [four for example in arena if (four := first_of_each_score(example, 4))]
    assert len(fours) > 200
    total: Counter[int] = Counter()
    for seed in range(8):
        drawn = Counter(places(fours, seed))
        assert chi_square([drawn[rank] for rank in range(3)], [len(fours) / 3] * 3) < ONE_PERCENT[2]
        total += drawn
    assert chi_square([total[rank] for rank in range(3)], [8 * len(fours) / 3] * 3) < ONE_PERCENT[2]
    # The same test sees the fault of the first release: the same sequence of draws in every row.
    again = Counter(places(fours[:1], 0) * len(fours))
    assert chi_square([again[rank] for rank in range(3)], [len(fours) / 3] * 3) > 100


@pytest.mark.parametrize("by_rank", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_every_lower_completion_is_as_likely_in_whole_rows(arena: list[Example], by_rank: bool, seed: int) -> None:
    """Twelve to fifteen completions with ties: by quarters of the lower ones, in the order of the file or of the ranks."""
    counts, expected = [0.0] * 4, [0.0] * 4
    for row, example in enumerate(arena):
        scores, said = example.scores or (), [completion[0].content.strip() for completion in example.completions]
        considered = [number for number, text in enumerate(said) if text and text not in said[:number]]
        best = max(scores[number] for number in considered)
        lower = [number for number in considered if scores[number] < best]
        lower.sort(key=lambda number: -scores[number] if by_rank else 0)
        for pair in Binarise(seed=seed).apply(example, row).examples:
            counts[lower.index("ABCDEFGHIJKLMNO".index(letters(pair)[1])) * 4 // len(lower)] += 1
            for place in range(len(lower)):
                expected[place * 4 // len(lower)] += 1 / len(lower)
    assert sum(counts) == pytest.approx(sum(expected))
    assert sum(counts) > 290
    assert chi_square(counts, expected) < ONE_PERCENT[3]


def test_draws_depend_on_seed_and_row_alone(arena: list[Example]) -> None:
    forwards = [Binarise(seed=3).apply(example, row) for row, example in enumerate(arena)]
    backwards = [Binarise(seed=3).apply(arena[row], row) for row in reversed(range(len(arena)))]
    assert forwards == backwards[::-1]
    other = [Binarise(seed=4).apply(example, row) for row, example in enumerate(arena)]
    assert 0.6 < sum(a != b for a, b in zip(forwards, other, strict=True)) / len(arena) < 1
    assert len({Binarise().apply(arena[0], row).examples[0].origin for row in range(200)}) > 5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ties", ["drop", "keep"])
def test_every_completion_of_the_arena_is_accounted_for(arena: list[Example], rule: Any, ties: Any) -> None:
    if rule == "best" and ties == "keep":
        pytest.skip("the best alone is set against nothing")
    assert (len(arena), sum(len(example.completions) for example in arena)) == (300, 4461)
    left_out: Counter[str] = Counter()
    for row, example in enumerate(arena):
        paired = Binarise(rule, ties=ties).apply(example, row)
        left_out.update(paired.left_out)
        considered = len(example.completions) - len(paired.left_out)
        assert bool(paired.examples) != bool(paired.reason)
        for made in paired.examples:
            check(made)
            assert made.scores == tuple(sorted(made.scores or (), reverse=True))
            held = [int(number) - 1 for number in made.origin.rpartition("(")[2][:-1].split(" over ")]
            assert made.completions == tuple(example.completions[number] for number in held)
            assert made.scores == tuple((example.scores or ())[number] for number in held)
        if ties == "keep" and rule == "ranked":
            assert [len(made.completions) for made in paired.examples] == [considered]
        if ties == "keep" and rule == "all_pairs":
            assert len(paired.examples) == considered * (considered - 1) // 2
    assert left_out["blank text"] == 27
    assert left_out["the same text as another"] == repeated(arena)
    assert left_out.keys() == {"blank text", "the same text as another"}


def repeated(examples: list[Example]) -> int:
    said = [[text for completion in example.completions if (text := completion[0].content.strip())] for example in examples]
    return sum(len(texts) - len(set(texts)) for texts in said)

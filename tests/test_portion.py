"""What rows pass on their way into a corpus: how much is taken, filters, binarisation; each row has its place in the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import DOOR, Against, Letters, NoLetter, Row, Rows, example, made, pairs, quarantine
from zkit_sources.files import Jsonl

from zephyr_kit import smoke
from zephyr_kit.admission import Door
from zephyr_kit.binarise import Binarise, Rule
from zephyr_kit.corpus import DataError, prepare, refuse_bad_rows
from zephyr_kit.example import BadRow, Example, Removed
from zephyr_kit.portion import Portion


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources here are told apart by their names, which several share."""
    monkeypatch.setenv("ZKIT_CACHE", str(tmp_path / "own"))


def test_a_portion_is_a_fixed_random_share(tmp_path: Path) -> None:
    source = pairs(*[f"a|{'b' * (1 + number % 7)}" for number in range(400)])
    half = [row.origin for row in Portion(source, fraction=0.5, draw=3).rows()]
    assert half == [row.origin for row in Portion(source, fraction=0.5, draw=3).rows()]
    assert half != [row.origin for row in Portion(source, fraction=0.5, draw=4).rows()]
    assert 150 < len(half) < 250
    assert [row.origin for row in Portion(source, fraction=0.5, limit=9, draw=3).rows()] == half[:9]
    mixed = prepare([Portion(source, limit=2), Portion(pairs("x|y"), limit=9)], Letters(), DOOR, cache=tmp_path)
    assert (len(mixed), mixed.ledger["read"]) == (3, 3)


replies = st.lists(st.sampled_from(["", "a", "b", "bc", "d#", "x", "a" * 80]), max_size=4)
kinds = st.one_of(replies, st.sampled_from([BadRow("data.jsonl", "torn"), Removed("data.jsonl", "source", "unwanted")]))


def as_row(drawn: Any, line: int) -> Row:
    return example("q", *drawn, line=line) if isinstance(drawn, list) else replace(drawn, origin=f"data.jsonl:{line}")


@settings(max_examples=60)
@given(st.lists(kinds, max_size=30), st.sampled_from(["cut", "drop", "refuse"]), st.booleans(), st.booleans())
def test_every_row_has_its_place_in_the_ledger(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Any], too_long: Any, filtered: bool, binarised: bool
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    source = Rows(tuple(as_row(each, line) for line, each in enumerate(drawn)), name=str(folder))
    how = {"filters": (NoLetter("x"), NoLetter("d")) if filtered else (), "binarise": Against() if binarised else None}
    corpus = made(source, folder, Door(2, 64, too_long), **how)
    ledger = corpus.ledger
    assert ledger["read"] == len(drawn) == ledger["portions"][0]["read"]
    assert ledger["read"] + ledger["added"] == sum(ledger[fate] for fate in ("kept", "dropped", "bad", "removed"))
    lines = quarantine(corpus)
    assert len(lines) == sum(ledger["reasons"].values())
    assert len(lines) - ledger["cut"] == sum(ledger[fate] for fate in ("dropped", "bad", "removed"))
    # Row by row: each one is among the kept or in quarantine, by its line.
    named = [*corpus.origins, *(line["origin"] for line in lines)]
    assert {int(name.split(":")[1].split(" ")[0]) for name in named} == set(range(len(drawn)))
    for line, each in enumerate(drawn):
        if isinstance(each, list) and filtered and any("x" in reply for reply in each):
            reason = {"origin": f"data.jsonl:{line}", "fate": "removed", "reason": "filter no_letter 1: holds x"}
            assert reason in lines
        if isinstance(each, Removed):
            assert {"origin": f"data.jsonl:{line}", "fate": "removed", "reason": "source: unwanted"} in lines
    reached = [each for each in drawn if isinstance(each, list) and not (filtered and any("x" in r or "d" in r for r in each))]
    assert ledger["left_out"] == ({"blank": blank} if binarised and (blank := sum(each.count("") for each in reached)) else {})
    if not binarised:
        assert ledger["added"] == 0


def test_a_row_becomes_several_pairs(tmp_path: Path) -> None:
    source = pairs("q|a|b|c", "q|a", "q|a||a", "q|a|x", "q|a|b")
    corpus = made(source, tmp_path, Door(2, 64, "cut"), filters=(NoLetter("x"),), binarise=Against())
    ledger = corpus.ledger
    assert [ledger[name] for name in ("read", "added", "kept", "bad", "removed")] == [5, 1, 3, 1, 2]
    assert corpus.origins == ["data.jsonl:1 (row 0)", "data.jsonl:1 (row 0)", "data.jsonl:5 (row 4)"]
    assert quarantine(corpus) == [
        {"origin": "data.jsonl:2", "fate": "removed", "reason": "binarise: fewer than two completions"},
        {"origin": "data.jsonl:3 (row 2)", "fate": "bad", "reason": "chosen and rejected are identical"},
        {"origin": "data.jsonl:4", "fate": "removed", "reason": "filter no_letter: holds x"},
    ]
    assert ledger["left_out"] == {"blank": 1}
    (portion,) = ledger["portions"]
    assert portion["source"].startswith("rows: given = ")
    assert portion["read"] == 5
    assert [(tally["name"], tally["seen"], tally["removed"]) for tally in portion["sieve"]["filters"]] == [("no_letter", 5, 1)]


def test_several_portions_are_told_apart(tmp_path: Path) -> None:
    both = [Portion(pairs("q|a", "q|x"), filters=(NoLetter("x"),)), Portion(pairs("q|x"))]
    corpus = prepare(both, Letters(), DOOR, cache=tmp_path)
    assert [(portion["read"], "sieve" in portion) for portion in corpus.ledger["portions"]] == [(2, True), (1, False)]
    assert (corpus.ledger["read"], len(corpus)) == (3, 2)


def test_a_fraction_is_taken_before_the_filters(tmp_path: Path) -> None:
    source = pairs(*["q|a", "q|x"] * 50)
    corpus = made(source, tmp_path, limit=10, filters=(NoLetter("x"),))
    assert (corpus.ledger["read"], corpus.ledger["kept"], corpus.ledger["removed"]) == (10, 5, 5)


def test_what_a_source_changed_is_counted(tmp_path: Path) -> None:
    rows = [replace(example("q", "a", "b", line=line), notes=("score repaired",) if line % 3 else ()) for line in range(9)]
    corpus = made(Rows(tuple(rows), name="notes"), tmp_path, Door(2, 64, "cut"), binarise=Against(), filters=(NoLetter("x"),))
    assert corpus.ledger["notes"] == {"score repaired": 6}


def test_each_part_of_the_work_is_named(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    @contextmanager
    def track(part: str) -> Iterator[Callable[[int], None]]:
        yield lambda done: told.append((part, done))

    source = Rows(pairs("q|a", "q|b").given, name="parts")
    how = {"cache": tmp_path, "track": track}
    prepare([Portion(source, filters=(NoLetter("x"),))], Letters(), DOOR, **how)
    assert told == [("filtering", 1), ("filtering", 2), ("tokenising", 1), ("tokenising", 2)]
    prepare([Portion(source, filters=(NoLetter("x"),))], Letters(), DOOR, **how)
    assert len(told) == 4


def test_nothing_left_after_filters(tmp_path: Path) -> None:
    corpus = made(pairs("q|x"), tmp_path, filters=(NoLetter("x"),))
    told = "1 x filter no_letter: holds x\nmend them, or set another max_length, too_long, filters or binarise"
    with pytest.raises(DataError, match=told):
        refuse_bad_rows(corpus, allowed=0.01, name="data")


def test_a_portion_in_miniature_keeps_what_its_rows_pass(tmp_path: Path) -> None:
    (small,) = smoke.small_portions((Portion(pairs("q|a"), limit=3, filters=(NoLetter("x"),), binarise=Against()),), tmp_path)
    assert small == Portion(pairs("q|a"), filters=(NoLetter("#"),), binarise=Against())


@pytest.mark.parametrize("rule", get_args(Rule))
def test_real_feedback_adds_up_by_every_rule(tmp_path: Path, shared: Path, rule: Any) -> None:
    source = Jsonl(str(shared / "data" / "feedback_arena.jsonl.gz"))
    given = [row for row in source.rows() if isinstance(row, Example)]
    assert len(given) == 300
    binarise, chain = Binarise(rule), (NoLetter("Donald"),)
    completions = {"best": 1, "each": 1, "ranked": 15}.get(rule, 2)
    portion = Portion(source, filters=chain, binarise=binarise)
    corpus = prepare([portion], Letters(stop="\0"), Door(completions, 4000, "cut"), cache=tmp_path)
    ledger = corpus.ledger
    assert ledger["read"] == 300
    assert ledger["read"] + ledger["added"] == sum(ledger[fate] for fate in ("kept", "dropped", "bad", "removed"))
    expected = Counter({"removed": 0})
    for number, row in enumerate(given):
        paired = binarise.apply(row, number)
        away = chain[0].look(row).example is None
        expected["removed"] += away or not paired.examples
        expected["added"] += 0 if away else max(0, len(paired.examples) - 1)
        expected["left_out"] += 0 if away else len(paired.left_out)
    assert ledger["removed"] == expected["removed"] > 0
    assert ledger["added"] == expected["added"]
    assert sum(ledger["left_out"].values()) == expected["left_out"]
    assert (ledger["added"] > 0) == (rule in ("all_pairs", "each"))


RULES = [(None, 1, 1), (None, 4, 4), (Binarise("ranked", take=6), 6, 6), (Binarise("best"), 1, 2)]


@pytest.mark.parametrize(("rule", "count", "found"), RULES)
def test_rows_in_miniature_have_as_many_completions_as_are_compared(tmp_path: Path, rule: Any, count: int, found: int) -> None:
    scored = Rows(tuple(replace(example("q", "a", "b", line=number), scores=(2.0, 1.0)) for number in range(3)), str(tmp_path))
    small = smoke.refitted(Portion(scored, binarise=rule), count)
    rows = [row for row in small.source.rows() if isinstance(row, Example)]
    assert {len(set(row.completions)) for row in rows} == {len(row.scores or ()) for row in rows} == {found}
    assert [row.completions[0] for row in rows] == [each.completions[0] for each in scored.rows()]
    corpus = prepare([small], Letters(stop="\0"), Door(count, 4000, "cut"), cache=tmp_path)
    assert corpus.ledger["kept"] == 3
    assert smoke.refitted(small, count) == small


@pytest.mark.parametrize("rule", get_args(Rule))
def test_every_rule_has_a_miniature(rule: Any) -> None:
    assert smoke._lenient(Binarise(rule)).rule == rule
    assert smoke._lenient(Binarise("ranked", take=4, margin=2.0)) == Binarise("ranked", take=4)

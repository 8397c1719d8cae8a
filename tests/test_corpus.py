"""The corpus: what goes in comes out, every row is accounted for, and nothing half-made is ever used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import DOOR, Against, Letters, NoLetter, Row, Rows, example, made, pairs, quarantine

from zephyr_kit import ZkitError, workers
from zephyr_kit.admission import Door
from zephyr_kit.batch import Tree
from zephyr_kit.corpus import DataError, corpus_key, prepare, refuse_bad_rows
from zephyr_kit.example import BadRow, Example, Message
from zephyr_kit.portion import Portion
from zephyr_kit.records import DamagedError


def same(left: Tree, right: Tree) -> bool:
    arrays = [(tree.prompt, *tree.completions, *tree.trained) for tree in (left, right)]
    return all(np.array_equal(*two) and two[0].dtype == two[1].dtype for two in zip(*arrays, strict=True))


texts = st.text(st.sampled_from("abcdefgh"), min_size=1, max_size=9)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.data())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, completions: int, data: st.DataObject) -> None:
    replies = st.lists(texts, min_size=completions, max_size=completions, unique=True)
    drawn = data.draw(st.lists(st.tuples(st.one_of(st.just(""), texts), replies), max_size=6))
    source = Rows(tuple(example(prompt, *replies, line=number) for number, (prompt, replies) in enumerate(drawn)))
    door = Door(completions, 64, "cut")
    corpus = made(source, tmp_path_factory.mktemp("cache"), door)
    kept = [(row, admitted.tree) for row in source.given if (admitted := door.admit(row, Letters())).tree is not None]
    trees = [tree for _, tree in kept if tree is not None]
    assert len(corpus) == len(trees)
    assert all(same(corpus[number], tree) for number, tree in enumerate(trees))
    assert corpus.origins == [row.origin for row, _ in kept]
    assert corpus.lengths.tolist() == [tree.num_tokens for tree in trees]
    assert corpus.row_lengths(share_prompts=True).tolist() == [tree.num_tokens for tree in trees]
    assert corpus.row_lengths(share_prompts=False).tolist() == [sum(len(tree.prompt) + len(c) for c in tree.completions) for tree in trees]
    assert corpus.num_targets.tolist() == [sum(int(flags.sum()) for flags in tree.trained) for tree in trees]
    assert corpus.ledger["tokens"] == corpus.lengths.sum()
    assert corpus.ledger["trained"] == corpus.num_targets.sum()


def test_without_a_prompt_the_first_token_is_not_trained(tmp_path: Path) -> None:
    corpus = made(pairs("|abc", "|a"), tmp_path)
    assert corpus[0].trained[0].tolist() == [False, True, True]
    assert corpus.ledger["reasons"] == {"has no trained token": 1}


def test_an_empty_corpus_can_be_opened(tmp_path: Path) -> None:
    corpus = made(pairs("#|a"), tmp_path)
    assert len(corpus) == 0
    assert corpus.lengths.tolist() == corpus.num_targets.tolist() == corpus.row_lengths(share_prompts=False).tolist() == []
    assert corpus.origins == []


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, False),
        ({"source": Rows((), name="others")}, True),
        ({"fraction": 0.5}, True),
        ({"fraction": 0.5, "draw": 1}, True),
        ({"draw": 1}, False),
        ({"limit": 3}, True),
        ({"tokenizer": Letters("others")}, True),
        ({"completions": 2}, True),
        ({"max_length": 65}, True),
        ({"too_long": "drop"}, True),
        ({"portions": 2}, True),
        ({"filters": (NoLetter("a"),)}, True),
        ({"filters": (NoLetter("b"),)}, True),
        ({"filters": (NoLetter("a"), NoLetter("b"))}, True),
        ({"binarise": Against("best")}, True),
    ],
)
def test_the_key_changes_with_the_content(changes: dict[str, Any], differs: bool) -> None:
    def key(**given: Any) -> str:
        how = {name: given.pop(name) for name in ("fraction", "limit", "draw", "filters", "binarise") if name in given}
        portion = Portion(given.pop("source", pairs("a|b")), **how)
        portions, tokenizer = [portion] * given.pop("portions", 1), given.pop("tokenizer", Letters())
        return corpus_key(portions, tokenizer, replace(DOOR, **given))

    assert (key(**changes) != key()) == differs


def test_what_differs_makes_different_keys() -> None:
    ways = [{"fraction": 0.5, "draw": seed} for seed in range(3)]
    ways += [{"filters": order} for order in ((NoLetter("a"), NoLetter("b")), (NoLetter("b"), NoLetter("a")))]
    ways += [{"binarise": Against(first)} for first in ("first", "last")]
    keys = {corpus_key([Portion(pairs("a|b"), **how)], Letters(), DOOR) for how in ways}
    assert len(keys) == len(ways)


def test_a_second_time_nothing_is_read(tmp_path: Path) -> None:
    source = pairs("a|b", "#|c")
    first = made(source, tmp_path)
    before = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    again = made(source, tmp_path)
    assert source.reads == [2]
    assert again.folder == first.folder
    assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    source = pairs("a|b", "c|d", "e|f")
    with pytest.raises(KeyboardInterrupt):
        prepare([Portion(source)], Letters(), DOOR, cache=tmp_path, track=lambda _: nullcontext(stop))
    with pytest.raises(ZkitError, match="cannot go on"):
        made(pairs("a|b", "c|!"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(made(source, tmp_path)) == 3


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from contextlib import nullcontext
from pathlib import Path
from test_corpus import DOOR, Letters, pairs
from zephyr_kit.binarise import Binarise, Paired, Rule
from zephyr_kit.corpus import prepare
from zephyr_kit.portion import Portion
from zephyr_kit.records import DamagedError
from zephyr_kit.protocols import Verdict

def stop(done):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

prepare([Portion(pairs("a|b", "c|d", "e|f"))], Letters(), DOOR, cache=Path({cache!r}), track=lambda _: nullcontext(stop))
"""


def test_a_killed_writer_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    program = KILLED.format(tests=str(Path(__file__).parent), cache=str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    alive = left.with_name(left.name.rpartition(".")[0] + f".{os.getppid()}")
    alive.mkdir()
    corpus = made(pairs("a|b", "c|d", "e|f"), tmp_path)
    assert len(corpus) == 3
    assert sorted(tmp_path.iterdir()) == sorted([corpus.folder, alive]), "what a dead process left is swept, a living one's is not"


def test_two_writers_of_one_corpus(tmp_path: Path) -> None:
    source = pairs("a|b", "c|d")

    def overtake(done: int) -> None:
        if done == 1:
            other = prepare([Portion(source)], Letters(), DOOR, cache=tmp_path / "other")
            other.folder.rename(tmp_path / other.folder.name)

    assert len(prepare([Portion(source)], Letters(), DOOR, cache=tmp_path, track=lambda _: nullcontext(overtake))) == 2


def many() -> Rows:
    """Rows of every fate, more than one chunk of them."""
    kinds: list[Callable[[int], Row]] = [
        lambda line: example("q" * (1 + line % 5), "a" * (1 + line % 9), line=line),
        lambda line: example("q", "a" * 80, line=line),
        lambda line: example("q#", "a", line=line),
        lambda line: BadRow(f"data.jsonl:{line}", "not valid JSON"),
    ]
    return Rows(tuple(kinds[0 if line % 5 else line // 5 % 4](line) for line in range(100)))


def test_worker_processes_make_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CHUNK", 8)
    monkeypatch.setattr(workers, "CHUNKS_BEFORE_WORKERS", 1000)
    serial = made(many(), tmp_path / "serial")
    monkeypatch.setattr(workers, "CHUNKS_BEFORE_WORKERS", 3)
    monkeypatch.setattr(workers, "num_processors", lambda: 2)
    told: list[int] = []
    parallel = prepare([Portion(many())], Letters(), DOOR, cache=tmp_path / "parallel", track=lambda _: nullcontext(told.append))
    files = [{file.name: file.read_bytes() for file in corpus.folder.iterdir()} for corpus in (serial, parallel)]
    assert files[0] == files[1]
    assert serial.folder.name == parallel.folder.name
    assert told == list(range(1, 101))


def test_the_ledger_adds_up(tmp_path: Path) -> None:
    corpus = made(many(), tmp_path)
    ledger = corpus.ledger
    assert ledger["read"] == 100 == ledger["kept"] + ledger["dropped"] + ledger["bad"]
    assert (ledger["added"], ledger["removed"]) == (0, 0)
    assert (ledger["kept"], ledger["dropped"], ledger["bad"], ledger["cut"]) == (90, 0, 10, 5)
    assert ledger["reasons"] == {"cut to max_length = 64 tokens": 5, "holds a #": 5, "not valid JSON": 5}
    lines = quarantine(corpus)
    assert len(lines) == sum(ledger["reasons"].values()) == 15
    assert [line["origin"] for line in lines] == [f"data.jsonl:{number}" for number in range(100) if number % 5 == 0 and number // 5 % 4]
    assert {line["fate"] for line in lines if line["reason"].startswith("cut")} == {"cut"}
    assert ledger["first_bad"][:2] == ["data.jsonl:10: holds a #", "data.jsonl:15: not valid JSON"]
    assert len(ledger["first_bad"]) == 5
    assert len(corpus.origins) == ledger["kept"]


LONG = ("q|" + "a" * 70, "q|ab", "q|abc")


@pytest.mark.parametrize(
    ("too_long", "counts", "reason"),
    [
        ("cut", {"kept": 3, "cut": 1, "dropped": 0, "bad": 0}, "cut to max_length = 64 tokens"),
        ("drop", {"kept": 2, "cut": 0, "dropped": 1, "bad": 0}, "longer than max_length = 64 tokens"),
        ("refuse", {"kept": 2, "cut": 0, "dropped": 0, "bad": 1}, "longer than max_length = 64 tokens"),
    ],
)
def test_too_long(tmp_path: Path, too_long: Any, counts: dict[str, int], reason: str) -> None:
    corpus = made(pairs(*LONG), tmp_path, Door(1, 64, too_long))
    assert {name: corpus.ledger[name] for name in counts} == counts
    assert corpus.ledger["reasons"] == {reason: 1}
    fate = {"refuse": "bad", "drop": "dropped", "cut": "cut"}[too_long]
    assert quarantine(corpus) == [{"origin": "data.jsonl:1", "fate": fate, "reason": reason}]
    assert corpus.lengths.max() <= 64
    if too_long == "refuse":
        with pytest.raises(DataError, match=r"1 of 3 rows are bad \(33.33%\)"):
            refuse_bad_rows(corpus, allowed=0.3, name="data")
    else:
        refuse_bad_rows(corpus, allowed=0.0, name="data")


def test_cutting_keeps_the_beginning(tmp_path: Path) -> None:
    door = Door(2, 6, "cut")
    corpus = made(pairs("qr|abcdef|abX"), tmp_path, door)
    assert same(corpus[0], Letters().encode(example("qr", "abcd", "abX")))
    exact = made(pairs("qr|abcd|abX"), tmp_path / "exact", door)
    assert exact.ledger["cut"] == 0


@pytest.mark.parametrize("too_long", ["cut", "drop", "refuse"])
def test_a_pair_whose_difference_is_cut_away_is_never_trained(tmp_path: Path, too_long: Any) -> None:
    corpus = made(pairs("qr|abcdX|abcdY", "q" * 6 + "|a|b", "q|a|b"), tmp_path, Door(2, 6, too_long))
    assert len(corpus) == 1
    reasons = corpus.ledger["reasons"]
    if too_long == "cut":
        limit = "within max_length = 6 tokens"
        assert reasons == {f"its completions are identical {limit}": 1, f"its prompt leaves nothing to train {limit}": 1}
        assert corpus.ledger["bad"] == 2
    else:
        assert reasons == {"longer than max_length = 6 tokens": 2}


def test_a_pair_that_is_the_same_in_tokens_is_refused(tmp_path: Path) -> None:
    class Deaf(Letters):
        def encode(self, example: Example) -> Tree:
            heard = tuple((Message("assistant", reply.content.lower()),) for (reply,) in example.completions)
            return super().encode(replace(example, completions=heard))

    corpus = prepare([Portion(pairs("q|Yes|yes"))], Deaf(), Door(2, 64, "cut"), cache=tmp_path)
    assert corpus.ledger["reasons"] == {"its completions are identical in tokens": 1}


def test_the_number_of_completions_is_checked(tmp_path: Path) -> None:
    corpus = made(pairs("q|a|b", "q|a"), tmp_path)
    advice = 'to choose among them, add binarise = { rule = "best" } to the table of its data'
    assert corpus.ledger["reasons"] == {f"has 2 completions, but the objective takes 1: {advice}": 1}


def test_the_threshold(tmp_path: Path) -> None:
    corpus = made(pairs(*["q|a"] * 97, "q#|a", "q#|b", "q|"), tmp_path)
    refuse_bad_rows(corpus, allowed=0.03, name="stages.sft.data")
    with pytest.raises(DataError) as caught:
        refuse_bad_rows(corpus, allowed=0.02, name="stages.sft.data")
    assert str(caught.value).splitlines() == [
        "stages.sft.data: 3 of 100 rows are bad (3.00%), more than bad_rows = 0.02 allows:",
        "       2 x holds a #",
        "       1 x an assistant turn is empty",
        "the first bad ones:",
        "  data.jsonl:98: holds a #",
        "  data.jsonl:99: holds a #",
        "  data.jsonl:100: an assistant turn is empty",
        "mend them, or allow more with bad_rows",
    ]


def test_many_reasons_are_told_in_a_few_lines(tmp_path: Path) -> None:
    corpus = made(Rows(tuple(BadRow(f"f:{number}", f"reason {number}") for number in range(40))), tmp_path)
    with pytest.raises(DataError) as caught:
        refuse_bad_rows(corpus, allowed=0.5, name="data")
    assert len(str(caught.value).splitlines()) == 1 + 10 + 1 + 1 + 5 + 1
    assert "and 30 more reasons" in str(caught.value)
    assert len(corpus.ledger["reasons"]) == 40


def test_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data: the data has no rows"):
        refuse_bad_rows(made(Rows(()), tmp_path / "none"), allowed=1.0, name="data")
    dropped = made(pairs("q|" + "a" * 70), tmp_path / "dropped", Door(1, 64, "drop"))
    with pytest.raises(DataError, match="none of 1 rows is left to train on:\n       1 x longer than max_length = 64 tokens\nmend"):
        refuse_bad_rows(dropped, allowed=0.01, name="data")
    with pytest.raises(DataError, match="none of 1 rows is left to train on"):
        refuse_bad_rows(made(pairs("#|a"), tmp_path / "bad"), allowed=1.0, name="data")


ARRAYS = ("tokens.npy", "trained.npy", "ends.npy", "first.npy", "ratings.npy")


@pytest.mark.parametrize("name", [*ARRAYS, "origins.txt", "quarantine.jsonl", "ledger.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_bit_that_flips_in_the_cache_is_found_before_anything_is_trained_on(tmp_path: Path, name: str, share: float) -> None:
    """As rot does: neither the size nor a time changes."""
    source = pairs("a|bcd", "#|c", "e|fgh")
    file = made(source, tmp_path).folder / name
    data, times = bytearray(file.read_bytes()), file.stat()
    data[int(share * (len(data) - 1))] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DamagedError, match=rf"{name}: damaged \(.*remove the folder it is in, and the rows are tokenised again"):
        made(source, tmp_path)


def test_a_file_that_is_gone_from_the_cache_is_named(tmp_path: Path) -> None:
    source = pairs("a|b")
    (made(source, tmp_path).folder / "tokens.npy").unlink()
    with pytest.raises(DamagedError, match=r"tokens\.npy: damaged"):
        made(source, tmp_path)

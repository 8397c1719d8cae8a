"""The sieve: every row has one fate, the work may stop anywhere, and goes on to the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zkit_filters.length import Length
from zkit_filters.near_duplicates import NearDuplicates
from zkit_filters.truecase import Truecase
from zkit_sources.files import Jsonl

from zephyr_kit import ZkitError, sieve, workers
from zephyr_kit.example import BadRow, Example, Message, Removed
from zephyr_kit.protocols import Memory, Verdict
from zephyr_kit.sieve import Sieve, SieveError, Sifted, filter_names
from zephyr_kit.tally import NUM_REASONS, OTHERS, SieveLedger, as_text, excerpts


@dataclass(frozen=True)
class Plain:
    """What the filters here share."""

    def look(self, example: Example) -> Verdict:
        return Verdict(example)

    def memory(self, folder: Path, *, first: int) -> Any:
        return None

    def fingerprint(self) -> str:
        return repr(self)

    def problems(self) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> Plain:
        return self


@dataclass(frozen=True)
class NoLetter(Plain):
    """Removes what holds a letter."""

    letter: str = "x"

    def look(self, example: Example) -> Verdict:
        return Verdict(None, f"holds {self.letter}") if self.letter in as_text(example) else Verdict(example)


@dataclass(frozen=True)
class Loud(Plain):
    """Makes `a` an `A`."""

    def look(self, example: Example) -> Verdict:
        (reply,) = example.completions[0]
        said = reply.content.replace("a", "A")
        if said == reply.content:
            return Verdict(example)
        return Verdict(replace(example, completions=((Message("assistant", said),),)), "a to A")


@dataclass
class Lines:
    """What was met, in a file of numbered lines; those that are not kept are lost."""

    path: Path
    known: dict[str, int]

    def meet(self, row: int, trace: bytes, origin: str) -> str:
        text = trace.decode()
        if text in self.known:
            return "said before"
        self.known[text] = row
        return ""

    def keep(self) -> None:
        self.path.write_text(json.dumps(self.known), "utf-8")


@dataclass(frozen=True)
class Once(Plain):
    """Removes what begins as an earlier row did."""

    letters: int = 1

    def look(self, example: Example) -> Verdict:
        return Verdict(example, trace=example.completions[0][0].content[: self.letters].encode())

    @contextmanager
    def memory(self, folder: Path, *, first: int) -> Iterator[Memory]:
        path = folder / "met.json"
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        yield Lines(path, {text: row for text, row in known.items() if row < first})


class Broken(Plain):
    def look(self, example: Example) -> Verdict:
        raise IndexError("no such turn")


class Fatal(Plain):
    def look(self, example: Example) -> Verdict:
        os._exit(1)


CHAIN = (NoLetter(), Once(2), Loud(), Once(3), NoLetter("z"))


def row(text: Any, line: int = 0) -> Example:
    return Example((Message("user", "q"),), ((Message("assistant", text),),), origin=f"f:{line}")


def many(count: int) -> list[Example | BadRow]:
    """Rows of every fate."""
    letters = "abcdefgxyz"
    rows: list[Example | BadRow] = []
    for line in range(count):
        text = "".join(letters[(line * step) % 10] for step in (1, 3, 7)) + str(line * line % 17)
        rows.append(BadRow(f"f:{line}", "torn") if line % 11 == 5 else row(text, line))
    return rows


def made(rows: Sequence[Example | BadRow], cache: Path, chain: Sequence[Any] = CHAIN, **how: Any) -> Sifted:
    return Sieve(lambda: iter(rows), [len(rows)], tuple(chain)).sift(cache, **how)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def by_hand(rows: Sequence[Example | BadRow], chain: Sequence[Any] = CHAIN) -> list[Example | BadRow | Removed]:
    """The same in the plainest way."""
    met: list[set[bytes]] = [set() for _ in chain]
    passed: list[Example | BadRow | Removed] = []
    for each in rows:
        now: Any = each
        for number, one in enumerate(chain):
            if not isinstance(now, Example):
                break
            verdict = one.look(now)
            name = f"filter {filter_names(chain)[number]}"
            if verdict.example is None:
                now = Removed(each.origin, name, verdict.reason)
            elif isinstance(one, Once) and verdict.trace in met[number]:
                now = Removed(each.origin, name, "said before")
            else:
                met[number].add(verdict.trace)
                now = verdict.example
        passed.append(now)
    return passed


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve, "ROWS_PER_SHARD", 16)


@settings(max_examples=40)
@given(st.lists(st.one_of(st.text(st.sampled_from("abxyz"), min_size=1, max_size=4), st.none()), max_size=50))
def test_it_is_what_one_would_do_by_hand(tmp_path_factory: pytest.TempPathFactory, drawn: list[str | None]) -> None:
    rows = [BadRow(f"f:{line}", "torn") if text is None else row(text, line) for line, text in enumerate(drawn)]
    sifted = made(rows, tmp_path_factory.mktemp("cache"))
    expected = by_hand(rows)
    assert list(sifted.rows()) == expected
    ledger = sifted.ledger
    assert ledger["read"] == len(rows) == ledger["kept"] + ledger["removed"] + ledger["bad"]
    assert [ledger[name] for name in ("kept", "removed", "bad")] == [
        sum(isinstance(each, kind) for each in expected) for kind in (Example, Removed, BadRow)
    ]
    seen = len(rows) - ledger["bad"]
    for tally in ledger["filters"]:
        assert tally["seen"] == seen
        assert sum(tally["reasons"].values()) == tally["removed"] + tally["changed"]
        assert tally["removed"] == sum(isinstance(each, Removed) and each.by == f"filter {tally['name']}" for each in expected)
        assert [len(tally["samples"][kind]) for kind in ("removed", "changed")] == [min(5, tally[kind]) for kind in ("removed", "changed")]
        seen -= tally["removed"]
    assert seen == ledger["kept"]


odd = st.text(st.characters(exclude_categories=()), max_size=8)
messages = st.lists(st.builds(Message, st.sampled_from(["user", "assistant", "poet"]), odd), max_size=3).map(tuple)
scores = st.one_of(st.none(), st.lists(st.floats(allow_nan=False) | st.integers(), max_size=3).map(tuple))


examples = st.builds(Example, messages, st.lists(messages, max_size=3).map(tuple), scores, odd, st.lists(odd, max_size=2).map(tuple))


@given(st.lists(examples, max_size=6))
def test_a_row_comes_out_as_it_went_in(tmp_path_factory: pytest.TempPathFactory, rows: list[Example]) -> None:
    assert list(made(rows, tmp_path_factory.mktemp("cache"), [Plain()]).rows()) == rows


def test_a_second_time_nothing_is_read(tmp_path: Path) -> None:
    first = made(many(40), tmp_path)
    before = files(first.folder)
    again = Sieve(lambda: pytest.fail("was read again"), [40], CHAIN).sift(tmp_path)
    assert again.folder == first.folder
    assert files(again.folder) == before
    assert set(before) == {".lock", "00000.jsonl.gz", "00001.jsonl.gz", "00002.jsonl.gz", "ledger.json"}, "no memory is left, and no half"


def test_what_is_no_text_never_comes_to_a_filter(tmp_path: Path) -> None:
    (passed,) = made([row(True, 3)], tmp_path).rows()
    assert passed == BadRow("f:3", "content of a assistant turn is bool True, not text")


def test_no_rows(tmp_path: Path) -> None:
    sifted = made([], tmp_path)
    assert list(sifted.rows()) == []
    assert sifted.ledger["read"] == 0


class Stop(Exception):
    pass


@pytest.mark.parametrize("stops", [[1], [15], [16], [17], [40, 41, 70], [100]])
def test_it_goes_on_where_it_stopped(tmp_path: Path, stops: list[int]) -> None:
    def stop(done: int) -> None:
        if done in stops:
            stops.remove(done)
            raise Stop

    rows, last = many(100), stops[-1]
    whole = made(rows, tmp_path / "whole")
    while stops:
        with pytest.raises(Stop):
            made(rows, tmp_path / "parts", on_rows=stop)
    told: list[int] = []
    parts = made(rows, tmp_path / "parts", on_rows=told.append)
    assert told == list(range((last - 1) // 16 * 16 + 1, 101)), "whole shards are not sifted again"
    assert files(parts.folder) == files(whole.folder)
    assert list(parts.rows()) == by_hand(rows)


@pytest.mark.parametrize("place", ["shard", "memory", "rename", "ledger"])
def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    rows = many(50)
    whole = made(rows, tmp_path / "whole")

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    kind = {"shard": (sieve, "_record"), "memory": (Lines, "keep"), "rename": (Path, "rename"), "ledger": (SieveLedger, "in_order")}
    with monkeypatch.context() as patch:
        patch.setattr(*kind[place], full)
        with pytest.raises(OSError, match="No space left"):
            made(rows, tmp_path / "parts")
    (folder,) = (tmp_path / "parts").iterdir()
    assert not (folder / "ledger.json").exists()
    assert not list(folder.glob(".*.gz")), "no half is left"
    assert files(made(rows, tmp_path / "parts").folder) == files(whole.folder)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_sieve
from zephyr_kit import sieve

def stop(done):
    if done == 40:
        os.kill(os.getpid(), signal.SIGKILL)

sieve.ROWS_PER_SHARD = 16
test_sieve.made(test_sieve.many(100), Path({cache!r}), on_rows=stop)
"""


def test_a_killed_one_goes_on(tmp_path: Path) -> None:
    program = KILLED.format(tests=str(Path(__file__).parent), cache=str(tmp_path / "parts"))
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL
    told: list[int] = []
    parts = made(many(100), tmp_path / "parts", on_rows=told.append)
    assert told[0] == 33
    assert files(parts.folder) == files(made(many(100), tmp_path / "whole").folder)


def test_worker_processes_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serial = made(many(100), tmp_path / "serial")
    monkeypatch.setattr(workers, "CHUNK", 8)
    monkeypatch.setattr(workers, "CHUNKS_BEFORE_WORKERS", 3)
    monkeypatch.setattr(workers, "num_processors", lambda: 2)
    told: list[int] = []
    parallel = made(many(100), tmp_path / "parallel", on_rows=told.append)
    assert told == list(range(1, 101))
    assert files(serial.folder) == files(parallel.folder)


def test_a_worker_that_is_killed_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CHUNK", 8)
    monkeypatch.setattr(workers, "CHUNKS_BEFORE_WORKERS", 3)
    monkeypatch.setattr(workers, "num_processors", lambda: 2)
    with pytest.raises(ZkitError, match="a worker process was ended from outside"):
        made(many(100), tmp_path, [Fatal()])


def test_two_processes_do_the_work_once(tmp_path: Path) -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_sieve\n"
    program += "told = []; test_sieve.made(test_sieve.many(3000), Path(sys.argv[2]), on_rows=told.append); print(len(told))"
    arguments = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    both = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(int(process.communicate()[0]) for process in both) == [0, 3000]


def test_a_filter_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(SieveError, match="f:7: filter broken failed: IndexError: no such turn"):
        made([row("a", 7)], tmp_path, [Plain(), Broken()])


def test_a_damaged_shard_is_told(tmp_path: Path) -> None:
    sifted = made(many(40), tmp_path)
    shard = sifted.folder / "00001.jsonl.gz"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(SieveError, match=r"00001.jsonl.gz: damaged .*; remove the folder it is in"):
        list(sifted.rows())


def test_other_filters_sift_anew(tmp_path: Path) -> None:
    folders = {Sieve(lambda: iter([]), key, CHAIN).sift(tmp_path).folder for key in ([1], [2], [1, ["a"]])}
    assert len(folders) == 3


def test_filters_of_one_class_have_numbers() -> None:
    assert filter_names(CHAIN) == ["no_letter 1", "once 1", "loud", "once 2", "no_letter 2"]


def test_too_many_reasons_are_summed(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Fussy(Plain):
        def look(self, example: Example) -> Verdict:
            return Verdict(None, f"not like {example.origin}" if int(example.origin[2:]) % 2 else "even")

    (tally,) = made([row("a", line) for line in range(400)], tmp_path, [Fussy()]).ledger["filters"]
    assert next(iter(tally["reasons"].items())) == ("even", 200)
    assert len(tally["reasons"]) == NUM_REASONS + 1
    assert tally["reasons"][OTHERS] == 200 - (NUM_REASONS - 1)


def test_samples_show_the_change(tmp_path: Path) -> None:
    long = "b" * 500 + "a" + "c" * 500
    (tally,) = made([row(long, 1)], tmp_path, [Loud()]).ledger["filters"]
    (sample,) = tally["samples"]["changed"]
    assert sample == {
        "origin": "f:1",
        "reason": "a to A",
        "before": "…" + "b" * 60 + "a" + "c" * 259 + "…",
        "after": "…" + "b" * 60 + "A" + "c" * 259 + "…",
    }
    (tally,) = made([row(long + "x", 1)], tmp_path / "removed", [NoLetter()]).ledger["filters"]
    assert set(tally["samples"]["removed"][0]) == {"origin", "reason", "before"}
    assert excerpts("abc", "abd") == ("abc", "abd")


def test_a_shard_holds_rows_as_they_go_on(tmp_path: Path) -> None:
    sifted = made([row("ab", 1), row("x", 2), BadRow("f:3", "torn")], tmp_path)
    lines = list(map(json.loads, gzip.decompress((sifted.folder / "00000.jsonl.gz").read_bytes()).splitlines()))
    assert lines[:3] == [
        {"origin": "f:1", "prompt": [["user", "q"]], "completions": [[["assistant", "Ab"]]], "scores": None, "notes": []},
        {"origin": "f:2", "by": "filter no_letter 1", "removed": "holds x"},
        {"origin": "f:3", "bad": "torn"},
    ]
    assert lines[3]["ledger"]["read"] == 3


def test_a_memory_that_is_gone_is_told(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 40:
            raise Stop

    rows = [row(f"number {line} of them", line) for line in range(50)]
    with pytest.raises(Stop):
        made(rows, tmp_path, [NoLetter(), NearDuplicates()], on_rows=stop)
    (folder,) = tmp_path.iterdir()
    (folder / "memory" / "1" / "signatures.sqlite").unlink()
    with pytest.raises(ZkitError, match="what it knew of the 32 rows that were sifted before is gone; remove ") as caught:
        made(rows, tmp_path, [NoLetter(), NearDuplicates()])
    assert str(caught.value).endswith(f"remove {folder}, and they are sifted again")


def test_a_memory_that_met_none_of_the_last_rows_goes_on(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 40:
            raise Stop

    rows = [row("x" if line > 5 else f"number {line}", line) for line in range(50)]
    with pytest.raises(Stop):
        made(rows, tmp_path, [NoLetter(), NearDuplicates()], on_rows=stop)
    assert made(rows, tmp_path, [NoLetter(), NearDuplicates()]).ledger["kept"] == 6


def test_real_dialogues_pass_the_filters_that_are_built_in(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int) -> None:
        if done == 500:
            raise Stop

    monkeypatch.setattr(sieve, "ROWS_PER_SHARD", 128)
    rows = list(Jsonl(str(shared / "data" / "chat_sgd.jsonl.gz")).rows())[:800]
    chain = (Truecase(), Length(min_turns=8), NearDuplicates(threshold=0.3, words=2), NearDuplicates(threshold=0.5, words=1))
    whole = made(rows, tmp_path / "whole", chain)
    with pytest.raises(Stop):
        made(rows, tmp_path / "parts", chain, on_rows=stop)
    assert files(made(rows, tmp_path / "parts", chain).folder) == files(whole.folder)
    ledger = whole.ledger
    assert ledger["read"] == 800 == ledger["kept"] + ledger["removed"] + ledger["bad"]
    assert [tally["name"] for tally in ledger["filters"]] == ["truecase", "length", "near_duplicates 1", "near_duplicates 2"]
    assert all(tally["removed"] + tally["changed"] for tally in ledger["filters"])
    assert Counter(type(row) for row in whole.rows()) == {Example: ledger["kept"], Removed: ledger["removed"]}

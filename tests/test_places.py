"""Files of one content share what is kept of their rows; each run names the rows by its own files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rows import DOOR, Letters
from zkit_filters.near_duplicates import NearDuplicates
from zkit_sources.files import Files, Json, Jsonl
from zkit_sources.ultra import UltraChat

from zephyr_kit import ZkitError, sieve
from zephyr_kit.batch import Tree
from zephyr_kit.corpus import Corpus, DataError, prepare, refuse_bad_rows
from zephyr_kit.example import Example
from zephyr_kit.gate import Gate
from zephyr_kit.gate import refuse as refuse_by_gate
from zephyr_kit.gathered import GatheredRows
from zephyr_kit.inspection import Inspection
from zephyr_kit.portion import Portion
from zephyr_kit.prompts import read_prompts
from zephyr_kit.protocols import DataSource
from zephyr_kit.stage_data import list_quarantined

SAID = "What it says is said at some length, so that it is told when it is said again, and again."


class Once(Letters):
    """Refuses to tokenise."""

    def encode(self, example: Example) -> Tree:
        raise AssertionError("was tokenised again")


def line(prompt: str, reply: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]}


ROWS = [line("a", "b"), line("c#", "d"), line("a", "b"), line("e", SAID), line("f", SAID), line("g", ""), line("h", "i" * 70)]
FILES = {"rows.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n{no\n", "rows.json": json.dumps(ROWS, indent=1)}
FILTERS = {"no filters": (), "filters": (NearDuplicates(threshold=0.5),)}


def several(folder: Path) -> list[DataSource]:
    return [Files(str(folder)), Jsonl(str(folder / "rows.jsonl"))]


SOURCES: dict[str, Any] = {
    "jsonl": lambda folder: [Jsonl(str(folder / "rows.jsonl"))],
    "json": lambda folder: [Json(str(folder / "rows.json"))],
    "ultrachat": lambda folder: [UltraChat(str(folder / "rows.jsonl"))],
    "several": several,
    "gathered": lambda folder: [GatheredRows("feedback", folder / "gathered.jsonl")],
}


def written(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "gathered.jsonl").write_text("".join(json.dumps({**row, "num_given": 1}) + "\n" for row in ROWS))
    return folder


def all_told(portions: Sequence[Portion], corpus: Corpus, folder: Path) -> str:
    """Whatever names a row."""
    folder.mkdir()
    inspection = Inspection(corpus, Letters(), portions)
    told: list[Any] = [corpus.origins, corpus.ledger, list(corpus.quarantined())]
    names = ("truncated", "removed", "identical", "duplicates", "trained")
    told += [[(fault.origin, fault.reason) for fault in inspection.faults(name)] for name in names]
    list_quarantined(corpus, folder / "quarantine.jsonl")
    told.append((folder / "quarantine.jsonl").read_text("utf-8"))
    for refuse in (
        lambda: refuse_bad_rows(corpus, allowed=0.0, name="data"),
        lambda: refuse_by_gate(Gate(min_examples=100, max_truncated=0.0), inspection, name="data", listing=folder / "gate.jsonl"),
    ):
        with pytest.raises(DataError) as caught:
            refuse()
        told.append(str(caught.value).replace(str(folder), ""))
    told.append((folder / "gate.jsonl").read_text("utf-8"))
    told.append([(row.origin, getattr(row, "reason", "")) for portion in portions for row in portion.rows()])
    prompts, ledger = read_prompts(portions, allowed=1.0, where="data")
    told += [[prompt.origin for prompt in prompts], ledger.facts(), ledger.odd]
    return json.dumps(told, indent=1)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("kind", SOURCES)
def test_a_copy_is_not_tokenised_again_and_is_told_by_its_own_name(
    kind: str, filters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = written(tmp_path / "here"), written(tmp_path / "there" / "deeper")
    portions = [[Portion(source, filters=FILTERS[filters]) for source in SOURCES[kind](folder)] for folder in (first, second)]
    monkeypatch.setenv("ZKIT_CACHE", str(tmp_path / "cache"))
    made = prepare(portions[0], Letters(), DOOR, cache=tmp_path / "corpora")
    again = prepare(portions[1], Once(), DOOR, cache=tmp_path / "corpora")
    assert again.folder == made.folder
    told = all_told(portions[1], again, tmp_path / "told")
    assert str(second) in told
    assert str(first) not in told
    assert "\\u0002" not in told
    assert str(first) not in "".join(file.read_text("latin-1") for file in made.folder.iterdir()), "only content is kept"
    monkeypatch.setenv("ZKIT_CACHE", str(tmp_path / "empty"))
    assert told == all_told(portions[1], prepare(portions[1], Letters(), DOOR, cache=tmp_path / "empty"), tmp_path / "told anew")


def test_a_file_that_is_there_twice_may_be_two(tmp_path: Path) -> None:
    first, second, third = (written(tmp_path / name) for name in ("first", "second", "third"))

    def taken(*folders: Path, tokenizer: Letters) -> list[str]:
        portions = [Portion(Jsonl(str(folder / "rows.jsonl")), limit=1) for folder in folders]
        return prepare(portions, tokenizer, DOOR, cache=tmp_path / "corpora").origins

    assert taken(first, first, tokenizer=Letters()) == [f"{first}/rows.jsonl:1"] * 2
    assert taken(second, third, tokenizer=Once()) == [f"{second}/rows.jsonl:1", f"{third}/rows.jsonl:1"]


def test_filtering_that_was_interrupted_goes_on_from_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sieve, "ROWS_PER_SHARD", 2)
    first, second = (Portion(SOURCES["jsonl"](written(tmp_path / name))[0], filters=FILTERS["filters"]) for name in ("first", "second"))

    def stop(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.sift(on_rows=stop)
    sifted = list(second.rows())
    assert [row.origin for row in sifted] == [f"{tmp_path}/second/rows.jsonl:{number}" for number in range(1, 9)]
    assert [row.reason for row in sifted if hasattr(row, "by")] == [
        f"near-duplicate of an earlier row ({tmp_path}/second/rows.jsonl:{number})" for number in (1, 4)
    ]


def test_what_stops_the_run_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fussy(Letters):
        def encode(self, example: Example) -> Tree:
            raise ZkitError(f"cannot be written (first met at {example.origin})")

    path = written(tmp_path / "here") / "rows.jsonl"
    with pytest.raises(ZkitError, match=rf"first met at {path}:1\)"):
        prepare([Portion(Jsonl(str(path)))], Fussy(), DOOR, cache=tmp_path)

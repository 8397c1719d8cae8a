"""UltraChat and UltraFeedback: raw and prepared, from files, folders and the hub."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from zkit_sources import zkit_data_sources
from zkit_sources.files import Jsonl
from zkit_sources.rated import DOUBTED, REPAIRED, Rated, number_in, repaired
from zkit_sources.ultra import Ultra, UltraChat, UltraFeedback

from zephyr_kit import ZkitError
from zephyr_kit.binarise import Binarise
from zephyr_kit.config import Builder, Offered, PresetError
from zephyr_kit.example import BadRow, Example, Message, Removed
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import DataSource
from zephyr_kit.testing import DataSourceLaws

RAW_CHAT = [{"id": str(number), "data": [f"Ask {number}", "A", "And?", "B"]} for number in range(5)]
CHAT = [
    {"prompt": "U", "prompt_id": "0", "messages": [{"role": "user", "content": f"Ask {number}"}, {"role": "assistant", "content": "A"}]}
    for number in range(5)
]
USER = {"role": "user", "content": "U"}
PAIR = {
    "prompt": "U",
    "prompt_id": "0",
    "chosen": [USER, {"role": "assistant", "content": "A"}],
    "rejected": [USER, {"role": "assistant", "content": "B"}],
    "messages": [USER, {"role": "assistant", "content": "A"}],
    "score_chosen": 8.0,
    "score_rejected": 5.0,
}
RATINGS = {"instruction_following": "4", "honesty": "N/A", "truthfulness": "5", "helpfulness": "3"}
REPO = {UltraChat: "HuggingFaceH4/ultrachat_200k", UltraFeedback: "openbmb/UltraFeedback"}


def completion(response: str, score: Any = 5.0, ratings: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    annotations = {aspect: {"Rating": rating, "Rationale": "So."} for aspect, rating in (ratings or {}).items()}
    return {"response": response, "overall_score": score, "annotations": annotations, "custom_system_prompt": "Be kind.", **more}


def raw(source: str = "flan", *completions: dict[str, Any]) -> dict[str, Any]:
    four = completions or tuple(completion(letter, score, RATINGS) for letter, score in zip("ABCD", (3.0, 9.0, 5.0, 7.0), strict=True))
    return {"source": source, "instruction": "U", "models": ["m"] * 4, "completions": list(four)}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as the name of the file says."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)
    text = json.dumps(rows) if ".json" in path.suffixes else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


SCHEMAS: list[tuple[type[Ultra], list[dict[str, Any]]]] = [
    (UltraChat, RAW_CHAT),
    (UltraChat, CHAT),
    (UltraFeedback, [raw()]),
    (UltraFeedback, [PAIR]),
]


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of the hub, and a hub that does not answer."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("zkit_sources.hub_cache.request", lambda *_: time.sleep(200))
    monkeypatch.setattr("zkit_sources.hub_cache.PROBE_SECONDS", 0.2)


def examples(source: DataSource) -> list[Example]:
    return [row for row in source.rows() if isinstance(row, Example)]


def shown(messages: tuple[Message, ...]) -> str:
    return " ".join(f"{message.role[0]}:{message.content}" for message in messages)


class _Laws(DataSourceLaws):
    kind: type[Ultra]
    table: list[dict[str, Any]]

    @pytest.fixture(autouse=True)
    def _written(self, tmp_path: Path) -> None:
        self.source = self.kind(write(tmp_path / "rows.jsonl", self.table))


class TestRawChat(_Laws):
    kind, table = UltraChat, RAW_CHAT


class TestPreparedChat(_Laws):
    kind, table = UltraChat, CHAT


class TestRawFeedback(_Laws):
    kind, table = UltraFeedback, [raw(), raw("sharegpt"), raw("flan", *(completion(text, "N/A") for text in "ABCD"))]


class TestPreparedFeedback(_Laws):
    kind, table = UltraFeedback, [PAIR, PAIR]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "a.ndjson"])
def test_files_of_every_kind(tmp_path: Path, name: str) -> None:
    for number, (kind, rows) in enumerate(SCHEMAS):
        (tmp_path / str(number)).mkdir()
        source = kind(write(tmp_path / str(number) / name, rows))
        assert source.problems() == []
        assert len(examples(source)) == len(rows)
        assert examples(kind(str(tmp_path / str(number)))) == examples(source)


def test_dialogues(tmp_path: Path) -> None:
    for rows, completion_ in ((RAW_CHAT, "a:A u:And? a:B"), (CHAT, "a:A")):
        first = examples(UltraChat(write(tmp_path / "a.jsonl", rows)))[0]
        assert (shown(first.prompt), [shown(each) for each in first.completions]) == ("u:Ask 0", [completion_])
        assert first.origin == f"{tmp_path}/a.jsonl:1"
    # The split for supervised training of ultrafeedback_binarized: its `messages` are what was chosen.
    assert shown(examples(UltraChat(write(tmp_path / "b.jsonl", [PAIR])))[0].completions[0]) == "a:A"


def test_raw_feedback(tmp_path: Path) -> None:
    odd = raw("flan", completion("", "8"), completion("B", "N/A"), completion("C"))
    odd["completions"][2].pop("overall_score")
    first, second = examples(UltraFeedback(write(tmp_path / "a.jsonl", [raw(), odd])))
    assert (shown(first.prompt), [shown(each) for each in first.completions]) == ("u:U", ["a:A", "a:B", "a:C", "a:D"])
    assert first.scores == (3.0, 9.0, 5.0, 7.0)
    assert [shown(each) for each in second.completions] == ["a:", "a:B", "a:C"]
    assert repr(second.scores) == "(8.0, nan, nan)"


def test_prepared_feedback(tmp_path: Path) -> None:
    argilla = {name: PAIR[name] for name in ("prompt", "chosen", "rejected")}
    argilla |= {"source": "flan", "chosen-rating": 4.75, "rejected-rating": 3.0, "chosen-model": "x", "rejected-model": "y"}
    source = UltraFeedback(write(tmp_path / "a.jsonl", [PAIR, argilla, argilla | {"source": "truthful_qa"}]))
    assert [row.scores for row in examples(source)] == [(8.0, 5.0), (4.75, 3.0), (4.75, 3.0)]
    dropping = UltraFeedback(source.path, drop_sources=("truthful_qa",))
    assert [type(row) for row in dropping.rows()] == [BadRow, Example, Removed]
    (bad, *_) = dropping.rows()
    assert isinstance(bad, BadRow)
    assert bad.reason.startswith("no column `source`, which drop_sources goes by; the row has `prompt`")
    (problem,) = UltraFeedback(source.path, score="mean").problems()
    assert 'score = "mean" is for raw rows; this one is a pair already' in problem


@pytest.mark.parametrize(
    ("score", "mean", "wanted"),
    [
        (10.0, 1.0, (1.0, REPAIRED)),
        (10.0, 2.0, (1.0, REPAIRED)),
        (10.0, 2.25, (math.nan, DOUBTED)),
        (10.0, 4.0, (math.nan, DOUBTED)),
        (10.0, 4.25, (10.0, "")),
        (10.0, math.nan, (10.0, "")),
        (9.0, 1.0, (9.0, "")),
        (1.0, 5.0, (1.0, "")),
        (math.nan, 1.0, (math.nan, "")),
    ],
)
def test_the_rule_of_repair(score: float, mean: float, wanted: tuple[float, str]) -> None:
    assert repr(repaired(score, mean)) == repr(wanted)


def test_scores() -> None:
    row = raw("flan", completion("A", 7, RATINGS), completion("B", "10", dict.fromkeys(RATINGS, "1")), completion("C", 10.0, {}))
    row["completions"].append({"response": "D", "overall_score": "8/10", "annotations": None, "fine-grained_score": 2.5})
    row["completions"].append(completion("E", 10, {"honesty": 3}))
    scores = {name: Rated(name).read(row).scores for name in ("overall", "mean", "honesty", "truthfulness")}
    nan = math.nan
    wanted = {"overall": (7.0, 1.0, 10.0, nan, nan), "mean": (4.0, 1.0, nan, 2.5, 3.0)}
    assert repr(scores) == repr({**wanted, "honesty": (nan, 1.0, nan, nan, 3.0), "truthfulness": (5.0, 1.0, nan, nan, nan)})
    assert Rated().read(row).notes == (REPAIRED, DOUBTED)
    assert Rated(repair=False).read(row).scores[:3] == (7.0, 10.0, 10.0)  # type: ignore[index]
    assert Rated("mean").read(row).notes == Rated(repair=False).read(row).notes == ()
    assert [number_in(value) for value in ("4", " 4.5 ", 3)] == [4.0, 4.5, 3.0]
    # The one `nan`, so that a row read twice is equal.
    nothing = [number_in(value) for value in ("N/A", "", None, True, "nan", float("inf"), "1e999", 10**400, [5])]
    assert nothing == [nan] * 9


def test_dropped_sources_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [raw(), raw("truthful_qa"), raw("false_qa"), raw("truthful_qa")])
    rows = list(UltraFeedback(path, drop_sources=("truthful_qa",)).rows())
    assert [row for row in rows if not isinstance(row, Example)] == [
        Removed(f"{path}:{number}", "drop_sources", "source truthful_qa") for number in (2, 4)
    ]
    assert [row.origin for row in rows] == [f"{path}:{number}" for number in (1, 2, 3, 4)]
    assert len(examples(UltraFeedback(path))) == 4


def test_every_source_reads_the_raw_formats(tmp_path: Path) -> None:
    """Hub, files and `format` know them too, with the defaults of the source."""
    for kind, rows in SCHEMAS:
        path = write(tmp_path / "a.jsonl", rows)
        told = kind.raw if rows in (RAW_CHAT, [raw()]) else kind.prepared
        assert list(Jsonl(path).rows()) == list(Jsonl(path, format=told).rows()) == list(kind(path).rows())


def test_the_named_schema_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", RAW_CHAT)
    assert examples(UltraChat(path, schema="raw")) == examples(UltraChat(path))
    assert "no column `messages`; the row has `id`, `data`" in UltraChat(path, schema="prepared").problems()[0]
    (problem,) = UltraFeedback(path).problems()
    for words in ("its rows are in no known format", "columns found: id, data", "ultrafeedback (instruction, completions)"):
        assert words in problem
    assert "alpaca" not in problem


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"path": " "}, "`path` is empty"),
        ({"path": "json"}, 'use = "json"'),
        ({"path": "a.jsonl", "split": "train"}, '`split` = "train" is for data sets of the hub, but a.jsonl means local files'),
        ({"path": "*.jsonl.gz", "revision": "main"}, '`revision` = "main" is for data sets of the hub'),
        ({"path": "./rows", "split": "train"}, "leave it out"),
    ],
)
def test_keys_are_checked(keys: dict[str, Any], words: str) -> None:
    for kind in (UltraChat, UltraFeedback):
        with pytest.raises(ValueError, match=re.escape(words)):
            kind(**keys)


def test_the_path_tells_where_rows_are(tmp_path: Path, far: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", CHAT)
    (tmp_path / "notes.txt").write_text("x")
    assert len(examples(UltraChat("a.jsonl"))) == len(examples(UltraChat("*.jsonl"))) == 5
    for path, words in {
        "b.jsonl": f"{tmp_path}/b.jsonl: no such file or folder; did you mean {tmp_path}/a.jsonl?",
        "some/deep/folder": "no such file or folder",
        "notes.txt": "its name does not tell what it holds; it should end in .jsonl",
        "owner/name": "owner/name: neither in the local cache",
    }.items():
        (problem,) = UltraChat(path).problems()
        assert words in problem


def test_folders_with_splits(tmp_path: Path, far: None) -> None:
    """A data set that was downloaded whole."""
    import datasets

    datasets.disable_progress_bars()
    (tmp_path / "here" / "data").mkdir(parents=True)
    write(tmp_path / "here" / "data" / "train_sft-00000-of-00001.parquet", CHAT)
    write(tmp_path / "here" / "data" / "test_sft-00000-of-00001.parquet", CHAT[:2])
    source = UltraChat(str(tmp_path / "here"), split="test_sft")
    assert (source.problems(), len(examples(source))) == ([], 2)
    assert len(examples(UltraChat(str(tmp_path / "here"), split="train_sft"))) == 5
    (problem,) = UltraChat(str(tmp_path / "here")).problems()
    assert "folders in it are searched only by a glob" in problem
    with pytest.raises(ValueError, match="a local folder"):
        UltraChat(str(tmp_path / "here"), split="test_sft", revision="main")


@pytest.mark.parametrize(("kind", "rows"), SCHEMAS)
def test_the_hub(far: None, monkeypatch: pytest.MonkeyPatch, kind: type[Ultra], rows: list[dict[str, Any]]) -> None:
    asked: list[Any] = []

    def load(repo: str, config: str | None, **keys: Any) -> Any:
        asked.append((repo, config, keys))
        return rows

    monkeypatch.setattr("zkit_sources.hub.load_remote", load)
    assert len(examples(kind(REPO[kind]))) == len(rows)
    assert len(examples(kind(REPO[kind], split="train_sft", revision="v1"))) == len(rows)
    assert asked == [
        (REPO[kind], None, {"split": "train", "revision": None}),
        (REPO[kind], None, {"split": "train_sft", "revision": "v1"}),
    ]
    others: list[dict[str, Any]] = [{}, {"split": "test"}, {"revision": "v1"}, {"schema": "raw"}]
    marks = {kind(REPO[kind], **keys).fingerprint() for keys in others}
    assert len(marks) == 4


def test_fingerprints(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [raw()])
    others: list[dict[str, Any]] = [{}, {"score": "mean"}, {"repair": False}, {"drop_sources": ("flan",)}]
    assert len({UltraFeedback(path, **keys).fingerprint() for keys in others}) == 4
    assert UltraFeedback(write(tmp_path / "b.jsonl", [raw()])).fingerprint() == UltraFeedback(path).fingerprint()
    before = UltraFeedback(path).fingerprint()
    assert UltraFeedback(write(tmp_path / "a.jsonl", [raw(), raw()])).fingerprint() != before
    assert pickle.loads(pickle.dumps(UltraFeedback(path))) == UltraFeedback(path)


@pytest.mark.parametrize(
    ("source", "completions"),
    [
        (UltraChat("HuggingFaceH4/ultrachat_200k", split="train_sft"), 1),
        (UltraChat("stingning/ultrachat"), 1),
        (UltraChat("owner/name", schema="raw"), 1),
        (UltraFeedback("openbmb/UltraFeedback", drop_sources=("truthful_qa",)), 4),
        (UltraFeedback("openbmb/ultrafeedback", score="honesty"), 4),
        (UltraFeedback("HuggingFaceH4/ultrafeedback_binarized", split="train_prefs"), 2),
        (UltraFeedback("argilla/ultrafeedback-binarized-preferences-cleaned", drop_sources=("truthful_qa",)), 2),
        (UltraFeedback("owner/name", schema="prepared"), 2),
        (UltraFeedback("lost.jsonl", schema="raw"), 4),
    ],
)
def test_miniatures_out_of_reach(tmp_path: Path, far: None, source: Ultra, completions: int) -> None:
    small = source.miniature(tmp_path)
    assert type(small) is type(source)
    assert small.problems() == []
    assert small.fingerprint() == source.miniature(tmp_path / "again").fingerprint()
    rows = examples(small)
    assert len(rows) == len(list(small.rows())) == 64
    assert {len(row.completions) for row in rows} == {completions}
    if completions == 4:
        made = [Binarise(ties="drop").apply(row, number) for number, row in enumerate(rows)]
        assert all(paired.examples and not paired.left_out for paired in made)
        best = Counter((row.scores or ()).index(max(row.scores or ())) for row in rows)
        assert set(best) == {0, 1, 2, 3}


def test_a_miniature_of_what_cannot_be_told(far: None, tmp_path: Path) -> None:
    with pytest.raises(ZkitError, match='name it: schema = "raw" or "prepared"'):
        UltraFeedback("owner/name").miniature(tmp_path)


def test_a_source_to_drop_that_is_misspelt(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [raw("flan_v2_p3"), raw("truthful_qa")])
    rows = UltraFeedback(path, drop_sources=("truthfulqa", "sharegpt")).rows()
    assert [next(rows).origin, next(rows).origin] == [f"{path}:1", f"{path}:2"]
    with pytest.raises(ZkitError, match=r'a.jsonl: drop_sources = "truthfulqa" matches no row; did you mean `truthful_qa`\?'):
        next(rows)
    # Rows of these were taken out before; another name that looks like theirs is no reason to refuse.
    for absent in ("sharegpt", "flan_v2_cot", "TruthfulQA 2"):
        cleaned = UltraFeedback(write(tmp_path / "b.jsonl", [raw("flan_v2_p3")]), drop_sources=(absent,))
        assert [type(row) for row in cleaned.rows()] == [Example]
    both = UltraFeedback(path, drop_sources=("truthful_qa", "truthfulqa"))
    assert [type(row) for row in both.rows()] == [Example, Removed]


def test_tables_of_a_preset(tmp_path: Path) -> None:
    offers = {DataSource: Offered("data source", zkit_data_sources())}
    path = write(tmp_path / "a.jsonl", [raw(), raw("truthful_qa")])
    table: dict[str, Any] = {"use": "ultrafeedback", "path": path, "score": "mean", "drop_sources": ["truthful_qa"], "limit": 5}
    portion = Builder(offers, "p.toml").build(Portion, table, "data[0]")
    assert portion.source == UltraFeedback(path, score="mean", drop_sources=("truthful_qa",))
    assert [type(row) for row in portion.rows()] == [Example, Removed]
    for key, value, words in (("score", "kindness", "helpfulness"), ("schema", "cooked", "raw"), ("drop_source", ["x"], "drop_sources")):
        with pytest.raises(PresetError, match=words):
            Builder(offers, "p.toml").build(Portion, {**table, key: value}, "data[0]")
    with pytest.raises(PresetError, match='`split` = "train" is for data sets of the hub'):
        Builder(offers, "p.toml").build(Portion, {**table, "split": "train"}, "data[0]")


def test_real_files(shared: Path) -> None:
    chat = UltraChat(str(shared / "data" / "chat_sgd.jsonl.gz"))
    assert (chat.problems(), len(examples(chat))) == ([], 3000)
    pandalm = list(UltraFeedback(str(shared / "data" / "preference_pandalm.jsonl.gz")).rows())
    assert Counter(type(row) for row in pandalm) == {Example: 888, BadRow: 6}
    arena = UltraFeedback(str(shared / "data" / "feedback_arena.jsonl.gz"), drop_sources=("truthful_qa",))
    rows = examples(arena)
    assert (arena.problems(), len(rows), sum(len(row.completions) for row in rows)) == ([], 300, 4461)
    assert sum(not said[0].content.strip() for row in rows for said in row.completions) == 27
    assert not any(row.notes or any(map(math.isnan, row.scores or ())) for row in rows)

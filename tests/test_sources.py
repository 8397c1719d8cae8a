"""Data sources: every format, every kind of file, every kind of dirt, and true line numbers."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zkit_sources.files import Csv, Json, Jsonl, LocalFiles, Parquet
from zkit_sources.formats import BLANK_TURN, FORMATS, TURNS_LEFT_OUT, FormatName
from zkit_sources.hub import Hub
from zkit_sources.schema import Record, Schema

from zephyr_kit import ZkitError
from zephyr_kit.example import BadRow, Example, ExampleError, Message, Removed, check

SHARED = Path(os.environ.get("ZKIT_SHARED") or Path(__file__).parents[1] / ".." / "shared").resolve()
DIALOGUE = ["u:U", "a:A", "u:V"]
USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "SomeOwner/UltraChat_tiny"
PATIENCE = 60
"""Seconds, of a machine that has much else to do, for what takes three at the most on a quiet one."""


def turns(*pairs: str) -> list[dict[str, str]]:
    """`u:hello` as a user turn, `a:…`, `s:…` and `t:…` likewise."""
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [{"role": names[pair[0]], "content": pair[2:]} for pair in pairs]


def shown(messages: tuple[Message, ...]) -> list[str]:
    return [f"{message.role[0]}:{message.content}" for message in messages]


def read(row: dict[str, Any], name: FormatName = "auto", **columns: str) -> Example | BadRow:
    answer = next(Schema(name, columns).examples([Record("here:1", row)], where="here"))
    assert not isinstance(answer, Removed)
    return answer


def reason(row: dict[str, Any], name: FormatName = "auto", **columns: str) -> str:
    answer = read(row, name, **columns)
    assert isinstance(answer, BadRow), answer
    assert answer.origin == "here:1"
    return answer.reason


def write(path: Path, *lines: object, end: bytes = b"\n") -> str:
    data = end.join(line if isinstance(line, bytes) else str(line).encode() for line in lines) + end
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def bad_rows(source: LocalFiles) -> dict[str, str]:
    return {row.origin.removeprefix(f"{source.path}:").strip(): row.reason for row in source.rows() if isinstance(row, BadRow)}


@pytest.mark.parametrize(
    ("row", "prompt", "completions"),
    [
        ({"messages": turns("s:S", "u:U", "a:A", "u:V", "a:B", "u:W")}, ["s:S", "u:U"], [["a:A", "u:V", "a:B"]]),
        ({"prompt": "U", "prompt_id": "9", "messages": turns("u:U", "a:A")}, ["u:U"], [["a:A"]]),
        ({"conversations": [{"from": "human", "value": "U"}, {"from": "gpt", "value": "A"}]}, ["u:U"], [["a:A"]]),
        ({"conversations": [{"from": "system", "value": "S"}, {"from": "model", "value": "A"}]}, ["s:S"], [["a:A"]]),
        ({"instruction": "Do", "input": "this", "output": "A"}, ["u:Do\n\nthis"], [["a:A"]]),
        ({"instruction": "Do", "input": "", "response": "A"}, ["u:Do"], [["a:A"]]),
        ({"instruction": "Do", "input": None, "output": None, "response": "A", "text": "all"}, ["u:Do"], [["a:A"]]),
        ({"prompt": "U", "completion": "A"}, ["u:U"], [["a:A"]]),
        ({"prompt": turns("s:S", "u:U"), "completion": turns("a:A")}, ["s:S", "u:U"], [["a:A"]]),
        ({"prompt": "U", "chosen": "A", "rejected": "B"}, ["u:U"], [["a:A"], ["a:B"]]),
        ({"prompt": turns("s:S", "u:U"), "chosen": turns("a:A"), "rejected": turns("a:B")}, ["s:S", "u:U"], [["a:A"], ["a:B"]]),
        ({"prompt": turns("u:U"), "chosen": turns("u:U", "a:A"), "rejected": turns("u:U", "a:B")}, ["u:U"], [["a:A"], ["a:B"]]),
        ({"prompt": "U", "chosen": turns("u:U", "a:A"), "rejected": turns("u:U", "a:B"), "messages": turns()}, ["u:U"], [["a:A"], ["a:B"]]),
        ({"chosen": turns("u:U", "a:A", "u:V", "a:B"), "rejected": turns("u:U", "a:A", "u:V", "a:C")}, DIALOGUE, [["a:B"], ["a:C"]]),
        ({"chosen": turns("u:U", "a:A", "u:V", "a:B"), "rejected": turns("u:U", "a:C")}, ["u:U"], [["a:A", "u:V", "a:B"], ["a:C"]]),
        ({"text": "Once upon"}, [], [["t:Once upon"]]),
        ({"id": "0", "data": ["U", "A", "V", "B", "W"]}, ["u:U"], [["a:A", "u:V", "a:B"]]),
    ],
)
def test_formats(row: dict[str, Any], prompt: list[str], completions: list[list[str]]) -> None:
    example = read(row)
    assert isinstance(example, Example), example
    assert shown(example.prompt) == prompt
    assert [shown(completion) for completion in example.completions] == completions
    assert example.origin == "here:1"
    check(example)


@pytest.mark.parametrize(
    ("said", "notes"),
    [
        (["U", "A", "V", "B"], ()),
        (["U", "A", "V"], (TURNS_LEFT_OUT,)),
        (["U", "A", " \n", "B", "", "C"], (BLANK_TURN,)),
        (["", "A", "V"], (TURNS_LEFT_OUT, BLANK_TURN)),
        (["U", "A", " "], (TURNS_LEFT_OUT,)),
    ],
)
def test_what_is_odd_about_a_dialogue_is_noted(said: list[str], notes: tuple[str, ...]) -> None:
    roles = [("user", "assistant")[number % 2] for number in range(len(said))]
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    conversations = [{"from": turn["role"], "value": turn["content"]} for turn in messages]
    for row in ({"messages": messages}, {"conversations": conversations}, {"data": said}):
        example = read(row)
        assert isinstance(example, Example)
        check(example)  # blank turns are trained on
        assert example.notes == notes


def test_formats_that_are_read_only_where_they_are_named(tmp_path: Path) -> None:
    alone = read({"question": "U", "prompt": "x", "completion": "A"}, "prompt", prompt="question")
    assert alone == Example((Message("user", "U"),), (), origin="here:1")
    spoken = read({"prompt": turns("s:S", "u:U")}, "prompt")
    assert isinstance(spoken, Example)
    assert shown(spoken.prompt) == ["s:S", "u:U"]
    question = {"id": 7, "turns": ["One", " "], "none": None, "deep": [{"label": "Two", "ok": True}, 0.5]}
    assert read(question, "any_text") == Example((), ((Message("text", "One"), Message("text", "Two")),), origin="here:1")
    assert reason({"id": 7, "turns": []}, "any_text") == "the row holds no text"
    assert "half a surrogate pair" in reason({"a": "\ud800"}, "any_text")
    with pytest.raises(ValueError, match=r"does not know `prompt` \(format any_text has none\)"):
        Jsonl("a", format="any_text", columns={"prompt": "question"})
    (problem,) = Jsonl(write(tmp_path / "a.jsonl", '{"prompt": "U"}')).problems()
    assert 'write format = "prompt"' in problem
    assert "any_text (any columns; only where it is named)" in problem
    assert Jsonl(f"{tmp_path}/a.jsonl", format="prompt").problems() == []


def test_scores() -> None:
    pair = {"prompt": "U", "chosen": "A", "rejected": "B"}
    scored = read({**pair, "score_chosen": 8, "score_rejected": 2.5})
    assert isinstance(scored, Example)
    assert scored.scores == (8.0, 2.5)
    for value in (True, "8", float("nan"), 10**400, None):
        assert "score_chosen" in reason({**pair, "score_chosen": value, "score_rejected": 1})
    rated = read({**pair, "chosen-rating": 4.5, "rejected-rating": 2})
    assert isinstance(rated, Example)
    assert rated.scores == (4.5, 2.0)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": []}, "the list of turns is empty"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": None}, "`messages` is null, not a list"),
        ({"messages": "hello"}, "`messages` is str 'hello', not a list"),
        ({"messages": [USER, "So."]}, "turn 2 of `messages` is str 'So.', not an object"),
        ({"messages": [USER, {"role": "assistant"}]}, "turn 2 of `messages` has no `content` (it has `role`)"),
        ({"messages": [{"content": "x"}, ASSISTANT]}, "turn 1 of `messages` has no `role`"),
        ({"messages": [{"role": None, "content": "x"}]}, "role of turn 1 of `messages` is null, not text"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "content of the assistant turn is null, not text"),
        ({"messages": [USER, {"role": "assistant", "content": True}]}, "content of the assistant turn is bool True, not text"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "text"}]}]}, "content of the assistant turn is list"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud800"}]}, "half a surrogate pair (\\ud800)"),
        ({"conversations": [USER, ASSISTANT]}, "turn 1 of `conversations` has no `from` (it has `role`, `content`)"),
        ({"instruction": "Do", "input": 3, "output": "A"}, "`input` is int 3, not text"),
        ({"instruction": "Do", "output": None}, "`output` is null, not text"),
        ({"prompt": "U", "completion": float("nan")}, "`completion` is float nan, not text"),
        ({"chosen": "A", "rejected": "B"}, "no column `prompt`; the row has `chosen`, `rejected`"),
        ({"prompt": "U", "chosen": "A", "rejected": turns("a:B")}, "give two texts or two lists"),
        ({"chosen": turns("u:U", "a:A"), "rejected": turns("u:V", "a:B")}, "do not begin with the same prompt"),
        ({"prompt": "W", "chosen": turns("u:U", "a:A"), "rejected": turns("u:U", "a:B")}, "the same prompt as `prompt`"),
        ({"text": 3}, "`text` is int 3, not text"),
        ({"data": "U"}, "`data` is str 'U', not a list of texts"),
        ({"data": ["U", 3]}, "turn 2 of `data` is int 3, not text"),
        ({"data": ["U"]}, "no assistant turn"),
        ({"instruction": "U", "completions": None}, "`completions` is null, not a list"),
        ({"instruction": "U", "completions": []}, "the list of completions is empty"),
        ({"instruction": "U", "completions": ["A"]}, "completion 1 is str 'A', not an object"),
        ({"instruction": "U", "completions": [{"text": "A"}]}, "completion 1 has no `response` (it has `text`)"),
        ({"instruction": "U", "completions": [{"response": "A"}, {"response": None}]}, "`response` of completion 2 is null, not text"),
    ],
)
def test_nothing_is_coerced(row: dict[str, Any], words: str) -> None:
    assert words in reason(row)


def test_columns() -> None:
    example = read({"question": "U", "answer": "A", "prompt": "not this"}, prompt="question", completion="answer")
    assert isinstance(example, Example)
    assert shown(example.prompt) == ["u:U"]
    swapped = read({"prompt": "U", "chosen": "A", "rejected": "B"}, chosen="rejected", rejected="chosen")
    assert isinstance(swapped, Example)
    assert shown(swapped.completions[0]) == ["a:B"]
    told = reason({"question": "U", "completion": "A"}, "prompt_completion", prompt="qestion")
    assert told == "no column `qestion` (for `prompt`); the row has `question`, `completion`; did you mean `question`?"


def test_unknown_columns(tmp_path: Path) -> None:
    source = Jsonl(write(tmp_path / "a.jsonl", '{"mesages": [], "id": 3}'))
    for words in (source.path, "columns found: mesages, id", "preference (chosen, rejected", 'columns = { messages = "mesages" }'):
        assert words in source.problems()[0]
    with pytest.raises(ZkitError, match="no known format"):
        list(source.rows())
    labelled = Jsonl(write(tmp_path / "b.jsonl", '{"prompt": "U", "completion": "A", "label": false}'))
    assert 'format = "prompt_completion"' in labelled.problems()[0]
    lost = Jsonl(source.path, columns={"messages": "mesage"})
    assert "`columns` names `mesage`, which no row has; did you mean `mesages`?" in lost.problems()[0]


def test_the_first_good_rows_tell_the_format(tmp_path: Path) -> None:
    lines = ["{", '{"id": 1}', '{"id": 2, "text": "x"}', '{"messages": []}']
    rows = list(Jsonl(write(tmp_path / "a.jsonl", *lines)).rows())
    assert [type(row) for row in rows] == [BadRow, BadRow, Example, BadRow]
    assert list(Jsonl(write(tmp_path / "b.jsonl", "{", "[]")).rows())[1] == BadRow(
        f"{tmp_path}/b.jsonl:2", 'the row is list [], not an object (a file with one JSON list is read with use = "json")'
    )


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"path": " "}, "`path` is empty"),
        ({"path": "a", "format": "mesages"}, "did you mean `messages`?"),
        ({"path": "a", "columns": {"promt": "q"}}, "did you mean `prompt`?"),
        ({"path": "a", "columns": {"question": "prompt"}}, 'the standard name comes first: prompt = "question"'),
        ({"path": "a", "format": "text", "columns": {"prompt": "q"}}, "format text has text"),
    ],
)
def test_keys_are_checked(keys: dict[str, Any], words: str) -> None:
    for kind in (Jsonl, Json, Csv, Parquet, Hub):
        with pytest.raises(ValueError, match=words.replace("?", r"\?")):
            kind(**keys)
    with pytest.raises(ValueError, match='use = "json"'):
        Hub("json")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_true_line_numbers(tmp_path: Path, name: str) -> None:
    lines: list[str | bytes] = ['{"text": "x"}'] * 20_000
    lines[15_000], lines[7], lines[19_999] = '{"text": ', "", b'{"text": "\xff"}'
    source = Jsonl(write(tmp_path / name, *lines))
    rows = list(source.rows())
    assert len(rows) == 19_999
    assert bad_rows(source) == {
        "15001": "not valid JSON: Expecting value at column 10",
        "20000": "not UTF-8: byte 0xff at column 11",
    }
    assert rows[7].origin == f"{source.path}:9"


def test_dirty_lines(tmp_path: Path) -> None:
    good = '{"text": "\u2028 one\x85line"}'
    bad = ["[1]", "3", '{"text": "a", "text": "b"}', '{"text": NaN}', '{"a":' * 100_000, "1" * 5000, '{"text": "a"}{"text": "b"}']
    lines = [b"\xef\xbb\xbf" + good.encode(), "  \t", *bad, '{"text": "x", "unused": NaN}']
    for end in (b"\n", b"\r\n"):
        source = Jsonl(write(tmp_path / "a.jsonl", *lines, end=end))
        reasons = bad_rows(source)
        assert list(reasons) == [str(number) for number in range(3, 3 + len(bad))]
        assert "key `text` stands twice" in reasons["5"]
        assert reasons["6"] == "`text` is float nan, not text"
        rows = [row for row in source.rows() if isinstance(row, Example)]
        assert [row.completions[0][0].content for row in rows] == ["\u2028 one\x85line", "x"]


def test_broken_off_files(tmp_path: Path) -> None:
    source = Jsonl(write(tmp_path / "a.jsonl.gz", *[json.dumps({"text": str(number)}) for number in range(5000)]))
    Path(source.path).write_bytes(Path(source.path).read_bytes()[:-500])
    with pytest.raises(ZkitError, match="cannot be read to its end"):
        list(source.rows())
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    assert "not a readable Parquet file" in Parquet(str(tmp_path / "a.parquet")).problems()[0]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("wrap", [False, True])
def test_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, wrap: bool) -> None:
    texts = ['a "quoted" \\ [x], {', "\\", "y" * 50, "}]"]
    items: list[Any] = [{"text": text} for text in texts] + [7, {"text": None}]
    document = {"version": "1, [", "meta": {"tags": ["a"]}, "data": items} if wrap else items
    whole = list(Json(write(tmp_path / "a.json.gz", "\ufeff" + json.dumps(document, indent=indent))).rows())
    monkeypatch.setattr("zkit_sources.readers.NUM_BLOCK_CHARACTERS", 3)
    source = Json(str(tmp_path / "a.json.gz"))
    assert list(source.rows()) == whole
    assert [row.completions[0][0].content for row in whole if isinstance(row, Example)] == texts
    lines = (1, 1) if indent is None else ((21, 22) if wrap else (14, 15))
    reasons = ("the row is int 7, not an object", "`text` is null, not text")
    assert bad_rows(source) == {f"{line} (row {n})": reason for line, n, reason in zip(lines, (5, 6), reasons, strict=True)}


def test_one_bad_item_of_json_spoils_no_other(tmp_path: Path) -> None:
    lines = ['[{"text": "x"},', "", '{"text": nope, "more": [1, {}]},', b'{"text": "\xe9"},', '{"text": "y"},', "]"]
    source = Json(write(tmp_path / "a.json", *lines))
    assert bad_rows(source) == {
        "3 (row 2)": "not valid JSON: Expecting value at line 3, column 10",
        "4 (row 3)": "not UTF-8: byte 0xe9 at column 11",
    }
    assert len(list(source.rows())) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"text": "x"}', "may be cut off"),
        ('[{"text": "x}]', "may be cut off"),
        ('{"text": "x"}\n{"text": "y"}', 'line 2: a second value; JSON lines are read with use = "jsonl"'),
        ('{"prompt": ["a"], "completion": ["b"]}', "a second list"),
        ('{"data": {"rows": []}}', "no list of rows"),
        ("3", "'3' outside of the list"),
        ('[{"text": "x"}}]', "line 1: `}` where `]` should stand (after row 0)"),
        ("[[" * 1000, "nested too deeply"),
    ],
)
def test_broken_json(tmp_path: Path, text: str, words: str) -> None:
    source = Json(write(tmp_path / "a.json", text))
    with pytest.raises(ZkitError) as caught:
        list(source.rows())
    assert words in str(caught.value)
    assert source.path in str(caught.value)


def test_csv(tmp_path: Path) -> None:
    lines = ["\ufeffprompt,completion", 'U,"one', 'two"', "", "only", 'V,"a"b', b"\xff,x", "W,x,y", 'Z,"say ""so"""']
    source = Csv(write(tmp_path / "a.csv", *lines, end=b"\r\n"))
    rows = list(source.rows())
    assert [row.origin.rpartition(":")[2] for row in rows] == ["2", "5", "6", "7", "8", "9"]
    contents = [row.completions[0][0].content for row in rows if isinstance(row, Example)]
    assert contents == ["one\r\ntwo", 'say "so"']
    reasons = bad_rows(source)
    assert reasons["5"] == "1 fields under 2 columns; a field that holds a comma needs quotes"
    assert "not valid CSV" in reasons["6"]
    assert "not UTF-8" in reasons["7"]
    scored = Csv(write(tmp_path / "b.csv", "prompt,chosen,rejected,plus,score_rejected", "U,A,B,8,2.5"), columns={"score_chosen": "plus"})
    assert [row.scores for row in scored.rows() if isinstance(row, Example)] == [(8.0, 2.5)]
    assert "column `a` stands twice" in Csv(write(tmp_path / "c.csv", "a,a", "1,2")).problems()[0]
    assert "no rows" in Csv(write(tmp_path / "d.csv", "text")).problems()[0]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [USER, ASSISTANT]}] * 300 + [{"messages": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = Parquet(str(tmp_path))
    assert source.problems() == []
    assert len(list(source.rows())) == 301
    assert bad_rows(Parquet(f"{tmp_path}/a.parquet")) == {"row 301": "`messages` is null, not a list of turns"}
    texts = pyarrow.array([b"fine", b"\xff"]).cast(pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "b.parquet")
    assert [type(row) for row in Parquet(f"{tmp_path}/b.parquet").rows()] == [Example, BadRow]


def test_folders_and_globs(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.jsonl.gz", "c.txt", ".d.jsonl", "deep/e.jsonl"):
        write(tmp_path / name, json.dumps({"text": name}))
    for path, names in ((str(tmp_path), ["a.jsonl.gz", "b.jsonl"]), (f"{tmp_path}/**/[be].jsonl", ["b.jsonl", "deep/e.jsonl"])):
        rows = list(Jsonl(path).rows())
        assert [row.origin for row in rows] == [f"{tmp_path}/{name}:1" for name in names]
        assert Jsonl(path).problems() == []


def test_problems_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.jsonl", '{"text": "x"}')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "wide.jsonl").write_text("x", encoding="utf-16")
    (tmp_path / "none").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    monkeypatch.chdir(tmp_path)
    cases = {
        "trian.jsonl": f"{tmp_path}/trian.jsonl: no such file or folder; did you mean {tmp_path}/train.jsonl?",
        "nne/train.jsonl": f"did you mean {tmp_path}/none?",
        "empty.jsonl": "it is empty",
        "blank.jsonl": "it has no rows",
        "wide.jsonl": "it is UTF-16",
        "pipe.jsonl": "not a regular file",
        "none": "the folder holds no *.jsonl",
        "x*.jsonl": "no file matches",
    }
    for path, words in cases.items():
        (problem,) = Jsonl(path).problems()
        assert words in problem
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert "Permission denied" in Jsonl("train.jsonl").problems()[0]


def test_problems_tell_of_the_first_rows(tmp_path: Path) -> None:
    source = Jsonl(write(tmp_path / "a.jsonl", '{"text": "x"}'), format="messages")
    assert f"none of the first 1 rows is in format messages; {source.path}:1: no column `messages`" in source.problems()[0]


def test_fingerprint_follows_content_format_and_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x"}')
    marks = [Jsonl(path), Jsonl(path, format="text"), Jsonl(path, columns={"text": "body"}), Json(path)]
    assert len({source.fingerprint() for source in marks}) == 4
    before = Jsonl(path).fingerprint()
    assert Jsonl(write(tmp_path / "b.jsonl", '{"text": "x"}')).fingerprint() == before
    assert Jsonl(write(tmp_path / "a.jsonl", '{"text": "y"}')).fingerprint() != before
    with pytest.raises(ZkitError, match="no such file"):
        Jsonl(f"{path}x").fingerprint()
    assert pickle.loads(pickle.dumps(Jsonl(path))) == Jsonl(path)


@pytest.mark.parametrize("name", FORMATS)
def test_miniature(tmp_path: Path, name: FormatName) -> None:
    small = Hub("nobody/nothing", format=name).miniature(tmp_path / "new")
    again = Hub("nobody/nothing", format=name).miniature(tmp_path / "other")
    held_out = Hub("nobody/nothing", split="test", format=name).miniature(tmp_path / "new")
    assert small.problems() == []
    assert small.fingerprint() == again.fingerprint() != held_out.fingerprint()
    examples = [row for row in small.rows() if isinstance(row, Example)]
    assert len(examples) == len(list(small.rows())) == 64
    assert len({(example.prompt, example.completions) for example in examples}) > 50
    for example in examples:
        if name == "prompt":
            assert (len(example.prompt), example.completions) == (1, ())
        else:
            check(example)
    if name in ("messages", "conversations", "preference"):
        assert any(len(example.prompt) + len(example.completions[0]) > 2 for example in examples)
    if not FORMATS[name].by_name:
        assert Jsonl(small.path).miniature(tmp_path / "auto").format == name


def test_miniature_of_what_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(ZkitError, match='name it, as in format = "messages"'):
        Hub("nobody/nothing").miniature(tmp_path)


message_keys = st.sampled_from(["role", "content", "from", "value"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["user", "assistant"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(message_keys | st.text(), inner, max_size=4),
    max_leaves=12,
)
standard_columns = st.sampled_from(sorted({name for layout in FORMATS.values() for name in layout.columns()}))


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(standard_columns | st.text(), json_values, max_size=6), st.sampled_from(list(FORMATS)))
def test_any_row_is_an_example_or_a_bad_row(row: dict[str, Any], name: FormatName) -> None:
    answer = read(row, name)
    if isinstance(answer, BadRow):
        assert answer.reason
    else:
        for message in (*answer.prompt, *(turn for completion in answer.completions for turn in completion)):
            assert isinstance(message.role, str)
            message.content.encode()


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=80) | st.text(alphabet='[]{}",:\\ \ntex1', max_size=60).map(str.encode))
def test_any_bytes_are_rows_or_a_named_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    for kind in (Jsonl, Json, Csv, Parquet):
        try:
            for row in kind(str(path), format="text").rows():
                assert isinstance(row, Example | BadRow)
        except ZkitError as error:
            assert str(path) in str(error)  # noqa: PT017 - an error is allowed, not expected


def test_the_plugin_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "datasets", "pyarrow", "huggingface_hub"}
    code = f"import sys, zkit_sources; zkit_sources.zkit_data_sources(); print(sys.modules.keys() & {heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face hub, and a hub that is out of reach."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("zkit_sources.hub_cache.request", lambda *_: time.sleep(200))
    monkeypatch.setattr("zkit_sources.hub_cache.PROBE_SECONDS", 0.2)
    return tmp_path


def prepare(cache: Path, *texts: str) -> None:
    """Put a data set into the cache as `datasets` leaves it there."""
    import datasets
    from datasets.packaged_modules.json.json import Json as Builder

    datasets.disable_progress_bars()
    data = write(cache / "source.jsonl", *[json.dumps({"text": text}) for text in texts])
    files = {"train": [data], "test": [data]}
    Builder(cache_dir=str(cache / "made"), dataset_name="UltraChat_tiny", hash=COMMIT, data_files=files).download_and_prepare()
    (made,) = (cache / "made" / "ultra_chat_tiny").glob("default-*")
    made.rename(made.with_name("default"))
    shutil.copytree(cache / "made" / "ultra_chat_tiny", cache / "datasets" / "SomeOwner___ultra_chat_tiny")


def test_hub_reads_what_is_prepared(cache: Path) -> None:
    prepare(cache, "a", "b", "c")
    source = Hub(REPO, split="train")
    assert source.problems() == []
    assert [row.origin for row in source.rows()] == [f"{REPO}: row {number}" for number in (1, 2, 3)]
    assert len(list(Hub(REPO, split="train[:2]+test").rows())) == 5
    assert source.miniature(cache / "small").format == "text"
    assert COMMIT in source.fingerprint()
    assert len({source.fingerprint(), Hub(REPO, split="test").fingerprint(), Hub(REPO, config="x").fingerprint()}) == 3
    assert "no split `tran`; did you mean `train`? (it has train, test)" in Hub(REPO, split="tran").problems()[0]
    assert Hub(REPO, revision=COMMIT[:8]).problems() == []
    assert Hub(REPO, revision="feedbee").problems() != []


def test_hub_reads_what_is_downloaded(cache: Path) -> None:
    folder = cache / "hub" / "datasets--SomeOwner--UltraChat_tiny"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT / "README.md").touch()
    assert Hub(REPO).problems() != []
    write(folder / "snapshots" / COMMIT / "test.jsonl", '{"text": "x"}')
    assert Hub(REPO, split="test").problems() == []
    assert [type(row) for row in Hub(REPO, split="test", revision="main").rows()] == [Example]
    with pytest.raises(ZkitError, match=r"SomeOwner/UltraChat_tiny \(split tset\): cannot be loaded"):
        list(Hub(REPO, split="tset").rows())


def test_hub_out_of_reach(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    (problem,) = Hub(REPO).problems()
    assert time.monotonic() - begun < PATIENCE
    for words in (REPO, str(cache / "datasets"), "no answer within", "hf download --repo-type dataset", "HF_HOME", 'use = "jsonl"'):
        assert words in problem
    assert "v1.0" in Hub(REPO, revision="v1.0").fingerprint()
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("down.")))
    with pytest.raises(ZkitError, match=r"cannot be loaded: ConnectionError: down\. On a machine with network run"):
        list(Hub(REPO).rows())


@pytest.mark.parametrize("offline", ["0", "1"])
def test_hub_answers_soon(tmp_path: Path, offline: str) -> None:
    code = "import time; t = time.monotonic(); from zkit_sources.hub import Hub; print(Hub('a/b').problems(), time.monotonic() - t)"
    # A port that nobody listens on; a dead name server is what the test above imitates.
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "neither in the local cache" in done.stdout
    assert float(done.stdout.split()[-1]) < PATIENCE
    assert done.stderr == ""


def test_hub_reads_local_folders(cache: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    (cache / "plain").mkdir()
    write(cache / "plain" / "train.jsonl", '{"text": "x"}', '{"text": null}')
    source = Hub(str(cache / "plain"))
    assert [type(row) for row in source.rows()] == [Example, BadRow]
    before = source.fingerprint()
    write(cache / "plain" / "train.jsonl", '{"text": "y"}')
    assert source.fingerprint() != before
    datasets.DatasetDict({"train": datasets.Dataset.from_list([{"text": "x"}])}).save_to_disk(cache / "saved")
    assert [type(row) for row in Hub(str(cache / "saved")).rows()] == [Example]
    with pytest.raises(ZkitError, match="no split `test`"):
        list(Hub(str(cache / "saved"), split="test").rows())
    (cache / "plain" / "plain.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ZkitError, match="scripts are no longer supported"):
        list(source.rows())
    assert "it is a file" in Hub(f"{cache}/plain/train.jsonl").problems()[0]
    assert f"did you mean {cache}/plain?" in Hub(f"{cache}/plan").problems()[0]


def judged(name: str) -> tuple[int, int, int]:
    """Good rows, bad rows, and good ones that `check` refuses, of a shared data set."""
    path = SHARED / "data" / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path}; set ZKIT_SHARED to the folder with the shared data")
    rows = list(Jsonl(str(path)).rows())
    good = [row for row in rows if isinstance(row, Example)]
    return len(good), len(rows) - len(good), sum(not passes(example) for example in good)


def passes(example: Example) -> bool:
    try:
        check(example)
    except ExampleError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "counts"), [("chat_sgd", (3000, 0, 0)), ("preference_pandalm", (888, 6, 52)), ("instruct_roleplay", (1923, 0, 0))]
)
def test_real_data(name: str, counts: tuple[int, int, int]) -> None:
    assert judged(name) == counts


def test_real_dirt_is_named() -> None:
    judged("preference_pandalm")
    reasons = bad_rows(Jsonl(str(SHARED / "data" / "preference_pandalm.jsonl.gz")))
    assert list(reasons) == ["140", "141", "142", "144", "145", "147"]
    assert all(text.startswith("content of the assistant turn is bool True, not text") for text in reasons.values())

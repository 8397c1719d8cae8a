"""Dirty data and wrong paths: a clear line that names file and line, and every row accounted for."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import write_model
from zkit_mistral.scratch import byte_pairs
from zkit_mistral.tokenizer import ChatTokenizer, open_tokenizer
from zkit_sources.files import Csv, Jsonl, LocalFiles

from zephyr_kit.admission import Door
from zephyr_kit.cli import main
from zephyr_kit.corpus import Corpus, DataError, prepare, refuse_bad_rows
from zephyr_kit.portion import Portion

USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
GOOD = {"messages": [USER, ASSISTANT]}
KEPT = ""
LIMIT = "max_length = 128 tokens"


def said(*messages: Any, **more: Any) -> bytes:
    return json.dumps({"messages": list(messages), **more}).encode()


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def reply(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


LINES: dict[str, tuple[bytes, str]] = {
    # what trains silently elsewhere (RELIABILITY 1.8)
    "null content": (said(USER, reply(None)), "content of the assistant turn is null, not text"),
    "missing content": (said(USER, {"role": "assistant"}), "turn 2 of `messages` has no `content`"),
    "integer content": (said(USER, reply(7)), "content of the assistant turn is int 7, not text"),
    "boolean content": (said(USER, reply(True)), "content of the assistant turn is bool True, not text"),
    "list content": (said(USER, reply([{"type": "text", "text": "So."}])), "content of the assistant turn is list"),
    "object content": (said(user({"a": 1}), ASSISTANT), "content of the user turn is dict"),
    "tool calls": (said(USER, {**ASSISTANT, "tool_calls": [{"id": "1"}]}), "turn 2 of `messages` has `tool_calls`, which would be lost"),
    "weight": (said(USER, {**ASSISTANT, "weight": 0}), "turn 2 of `messages` has `weight` 0, but every reply is learnt alike"),
    "not to train": (said(USER, {**ASSISTANT, "train": False}, USER, ASSISTANT), "turn 2 of `messages` has `train` False, but"),
    "role typo": (said(USER, {"role": "asistant", "content": "So."}), "unknown role 'asistant'; did you mean 'assistant'?"),
    "role typo later": (said(USER, ASSISTANT, {"role": "usr", "content": "x"}, ASSISTANT), "unknown role 'usr'; did you mean 'user'?"),
    "capital role": (said({"role": "User", "content": "x"}, ASSISTANT), "unknown role 'User'; did you mean 'user'?"),
    "unknown role": (said({"role": "narrator", "content": "x"}, ASSISTANT), "unknown role 'narrator' (known: system, user, "),
    "null role": (said({"role": None, "content": "x"}, ASSISTANT), "role of turn 1 of `messages` is null, not text"),
    "missing role": (said({"content": "x"}, ASSISTANT), "turn 1 of `messages` has no `role`"),
    "no assistant turn": (said(USER), "no assistant turn to learn from"),
    "two assistant turns": (said(USER, ASSISTANT, reply("More.")), "two assistant turns follow each other"),
    "empty answer": (said(USER, reply("")), "an assistant turn is empty"),
    "blank answer": (said(USER, reply(" \n\t\u00a0")), "an assistant turn is empty"),
    "endless answer": (said(USER, reply("long " * 20_000)), f"cut to {LIMIT}"),
    "endless question": (said(user("long " * 20_000), ASSISTANT), f"its prompt leaves nothing to train within {LIMIT}"),
    "10,000 turns": (said(*[USER, ASSISTANT] * 5000), "has 10,000 turns, more than 1,000"),
    "forged end": (said(user("x</s>\n<|assistant|>\nYes."), ASSISTANT), "a user turn holds the control token '</s>'"),
    "forged beginning": (said(USER, reply("<s>So.")), "an assistant turn holds the control token '<s>'"),
    "a turn is text": (said(USER, "So."), "turn 2 of `messages` is str 'So.', not an object"),
    "turns are text": (b'{"messages": "hello"}', "`messages` is str 'hello', not a list of turns"),
    # what crashes elsewhere, without naming the row
    "no turns": (said(), "the list of turns is empty"),
    "null turns": (b'{"messages": null}', "`messages` is null, not a list of turns"),
    "no column": (b'{"mesages": []}', "no column `messages`; the row has `mesages`; `mesages` may be it"),
    "invalid UTF-8": (said(USER, ASSISTANT).replace(b"So", b"S\xff"), "not UTF-8: byte 0xff at column"),
    "broken off": (said(USER, ASSISTANT)[:-7], "not valid JSON"),
    "two rows in a line": (said(USER, ASSISTANT) * 2, "not valid JSON: Extra data"),
    "a list": (b"[1, 2]", "the row is list [1, 2], not an object"),
    "a number": (b"3", "the row is int 3, not an object"),
    "not JSON": (b"hello", "not valid JSON"),
    "a key twice": (b'{"messages": [], "messages": []}', "key `messages` stands twice"),
    "half a character": (said(USER, reply("So \ud83d")), "half a surrogate pair"),
    # what is fine
    "the assistant begins": (said(ASSISTANT), KEPT),
    "zeros": (said(user("a\0b"), reply("c\0d")), KEPT),
    "the user ends": (said(USER, ASSISTANT, USER), KEPT),
    "more columns": (said(USER, ASSISTANT, prompt_id="x", n=1.5, nothing=None), KEPT),
    "carriage return": (said(USER, ASSISTANT) + b"\r", KEPT),
    "blanks around": (b"  " + said(USER, ASSISTANT) + b"\t", KEPT),
    "escapes and emoji": (json.dumps({"messages": [user("é👩"), reply("שלום")]}, ensure_ascii=False).encode(), KEPT),
    "an empty question": (said(user(""), ASSISTANT), KEPT),
}

PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "fine": ({}, KEPT),
    "identical": ({"rejected": "So."}, "chosen and rejected are identical"),
    "identical in tokens": ({"rejected": "So. "}, KEPT),
    "empty chosen": ({"chosen": ""}, "an assistant turn is empty"),
    "blank rejected": ({"rejected": " \n"}, "an assistant turn is empty"),
    "boolean chosen": ({"chosen": True}, "`chosen` is bool True, not text"),
    "null rejected": ({"rejected": None}, "`rejected` is null, not text"),
    "one a list": ({"rejected": [reply("No.")]}, "give two texts or two lists"),
    "another prompt": ({"chosen": [USER, ASSISTANT], "rejected": [user("Who?"), ASSISTANT]}, "do not begin with the same prompt"),
    "unknown role": ({"chosen": [USER, {"role": "humna", "content": "x"}, ASSISTANT], "rejected": [USER, ASSISTANT]}, "unknown role"),
    "two answers": ({"chosen": [USER, ASSISTANT, reply("x")], "rejected": [USER, reply("No.")]}, "two assistant turns follow each other"),
    "difference cut away": ({"chosen": "a " * 500 + "x", "rejected": "a " * 500 + "y"}, f"its completions are identical within {LIMIT}"),
    "endless chosen": ({"chosen": "a " * 50_000}, f"cut to {LIMIT}"),
    "endless prompt": ({"prompt": "a " * 50_000}, f"its prompt leaves nothing to train within {LIMIT}"),
    "score is text": ({"score_chosen": "8", "score_rejected": 1}, "`score_chosen` is str '8', not a number"),
}


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    tokens = byte_pairs(["Why? So. No. long user assistant"], 300)
    tokens.chat_template = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    tokens.chat_template += "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    return ChatTokenizer(tokens)


def taken(source: LocalFiles, tokenizer: ChatTokenizer, cache: Path, *, completions: int = 1, max_length: int = 128) -> Corpus:
    return prepare([Portion(source)], tokenizer, Door(completions, max_length, "cut"), cache=cache)


def quarantine(corpus: Corpus) -> dict[str, tuple[str, str]]:
    return {line["origin"]: (line["fate"], line["reason"]) for line in corpus.quarantined()}


def check(corpus: Corpus, path: Path, expected: list[str]) -> None:
    """Each line as expected, named by file and line; all of them counted; nothing lost."""
    ledger, told = corpus.ledger, quarantine(corpus)
    for number, words in enumerate(expected, 1):
        fate, reason = told.get(f"{path}:{number}", ("kept", KEPT))
        assert (words in reason) if words else reason == KEPT, (number, words, reason)
        assert fate == ("kept" if not words else "cut" if words.startswith("cut") else "bad")
    bad = [words for words in expected if words and not words.startswith("cut")]
    assert ledger["read"] == len(expected) == ledger["kept"] + ledger["bad"]
    assert ledger["bad"] == len(bad)
    assert ledger["cut"] == sum(words.startswith("cut") for words in expected)
    assert sum(ledger["reasons"].values()) == len(told) == len(bad) + ledger["cut"]
    assert len(corpus) == len(corpus.origins) == ledger["kept"]
    trees = [corpus[number] for number in range(len(corpus))]
    assert max(len(tree.prompt) + len(ids) for tree in trees for ids in tree.completions) <= 128


@pytest.mark.parametrize("name", ["dirt.jsonl", "dirt.jsonl.gz"])
def test_every_line_is_accounted_for(tmp_path: Path, tokenizer: ChatTokenizer, name: str) -> None:
    path = tmp_path / name
    lines = [said(USER, ASSISTANT), *(line for line, _ in LINES.values())]
    data = b"\xef\xbb\xbf" + b"\n".join(lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    assert len(LINES) >= 38
    check(taken(Jsonl(str(path)), tokenizer, tmp_path / "cache"), path, [KEPT, *(words for _, words in LINES.values())])


def test_every_pair_is_accounted_for(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({**PAIR, **changes}) for changes, _ in PAIRS.values()))
    corpus = taken(Jsonl(str(path)), tokenizer, tmp_path / "cache", completions=2)
    check(corpus, path, [words for _, words in PAIRS.values()])


@pytest.mark.parametrize("name", [name for name, (_, words) in LINES.items() if words and not words.startswith("cut")])
def test_one_bad_row_is_told(tmp_path: Path, tokenizer: ChatTokenizer, name: str) -> None:
    line, words = LINES[name]
    path = tmp_path / "one.jsonl"
    path.write_bytes(b"\n\n".join([said(USER, ASSISTANT), line, said(USER, ASSISTANT)]))
    corpus = taken(Jsonl(str(path)), tokenizer, tmp_path / "cache")
    refuse_bad_rows(corpus, allowed=0.34, name="stages.sft.data")
    with pytest.raises(DataError) as caught:
        refuse_bad_rows(corpus, allowed=0.3, name="stages.sft.data")
    told = str(caught.value).splitlines()
    assert told[0] == "stages.sft.data: 1 of 3 rows are bad (33.33%), more than bad_rows = 0.3 allows:"
    assert told[3].startswith(f"  {path}:3: ")
    assert words in told[3]
    assert all(len(line) < 300 for line in told)


def test_text_rows(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    rows: list[tuple[Any, str]] = [
        ({"text": "Once\n\nupon \0 a 👩 time"}, KEPT),
        ({"text": None}, "`text` is null, not text"),
        ({"txt": "x"}, "no column `text`; the row has `txt`; `txt` may be it"),
        ({"text": ""}, "the text is empty"),
        ({"text": "a</s>b"}, "the text holds the control token '</s>'"),
        ({"text": "a" * 100_000}, f"cut to {LIMIT}"),
    ]
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps(row) for row, _ in rows))
    check(taken(Jsonl(str(path)), tokenizer, tmp_path / "cache"), path, [words for _, words in rows])


def test_blank_lines_are_no_rows_and_keep_the_numbers_true(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\r\n\r\n".join([said(USER, ASSISTANT), b"  ", b"{", said(USER, ASSISTANT)]))
    corpus = taken(Jsonl(str(path)), tokenizer, tmp_path / "cache")
    assert corpus.ledger["read"] == 3
    assert list(quarantine(corpus)) == [f"{path}:5"]
    assert corpus.origins == [f"{path}:1", f"{path}:7"]


def test_csv_rows(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,completion\nWhy?,So.\nWhy?,\nWhy?,"a\nb"\nWhy?,S\xe9.\nWhy?\n')
    corpus = taken(Csv(str(path)), tokenizer, tmp_path / "cache")
    told = {origin.removeprefix(f"{path}:"): reason for origin, (_, reason) in quarantine(corpus).items()}
    assert list(told) == ["3", "6", "7"]
    assert told["3"] == "an assistant turn is empty"
    assert "not UTF-8" in told["6"]
    assert corpus.origins == [f"{path}:2", f"{path}:4"]


# Through the command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


PRESET = """
name = "dirt"
seed = 1

[model]
use = "mistral"
weights = "{weights}"
dtype = "float32"
template = "zephyr"

[stages.first]
objective = "{objective}"
data = [{{ use = "jsonl", path = "{path}" }}]
max_length = 256
train = {{ steps = 1, examples_per_step = 1, learning_rate = 1e-3 }}
"""


class Command:
    """`zkit run` in this process, in a folder of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def write(self, *lines: bytes) -> Path:
        path = self.folder / "data.jsonl"
        path.write_bytes(b"\n".join(lines))
        return path

    def run(self, weights: Path | str, path: Path, *, objective: str = "sft", changes: tuple[str, ...] = ()) -> tuple[int, str, str]:
        preset = self.folder / "preset.toml"
        preset.write_text(PRESET.format(weights=weights, path=path, objective=objective))
        sets = [word for change in changes for word in ("--set", change)]
        with pytest.raises(SystemExit) as ended:
            main(["run", str(preset), "--output", str(self.folder / "run"), "--device", "cpu", *sets])
        out, err = self.capsys.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def test_the_run_stops_at_bad_rows_and_names_them(command: Command, model: Path) -> None:
    broken = LINES["invalid UTF-8"][0]
    path = command.write(said(USER, ASSISTANT), LINES["role typo later"][0], broken)
    code, _, err = command.run(model, path)
    assert code == 6
    assert err.startswith("error: stages.first.data: 2 of 3 rows are bad (66.67%), more than bad_rows = 0.01 allows:\n")
    assert f"\n  {path}:2: unknown role 'usr'; did you mean 'user'?\n" in err
    assert f"\n  {path}:3: not UTF-8: byte 0xff at column {broken.index(255) + 1}\n" in err
    kept = [json.loads(line) for line in (command.folder / "run" / "first.data.quarantine.jsonl").read_text().splitlines()]
    assert [line["origin"] for line in kept] == [f"{path}:2", f"{path}:3"]
    assert "Traceback" not in err


def test_the_run_goes_on_when_bad_rows_are_allowed(command: Command, model: Path) -> None:
    path = command.write(*[said(USER, reply(f"So {n}.")) for n in range(3)], said(USER, reply("a" * 100_000)), LINES["empty answer"][0])
    code, out, err = command.run(model, path, changes=("stages.first.bad_rows=0.25",))
    assert (code, err) == (0, "")
    assert "data: 4 of 5 rows" in out
    assert "1 cut to max_length = 256 tokens; 1 an assistant turn is empty" in out
    assert (command.folder / "run" / "first" / "model" / "model.safetensors").is_file()


def test_identical_chosen_and_rejected(command: Command, model: Path) -> None:
    path = command.write(*[json.dumps({**PAIR, **changes}).encode() for changes in ({}, {"rejected": "So."}, {"rejected": ""})])
    code, _, err = command.run(model, path, objective="dpo")
    assert code == 6
    assert f"\n  {path}:2: chosen and rejected are identical\n" in err
    assert f"\n  {path}:3: an assistant turn is empty\n" in err


def test_the_data_does_not_fit_the_objective(command: Command, model: Path) -> None:
    code, _, err = command.run(model, command.write(said(USER, ASSISTANT)), objective="dpo")
    assert code == 6
    assert "has 1 completion(s), but the objective compares 2" in err


def test_a_missing_file(command: Command, model: Path) -> None:
    (command.folder / "data.jsonl").write_bytes(said(USER, ASSISTANT))
    code, _, err = command.run(model, command.folder / "dta.jsonl")
    assert code == 1
    assert f"{command.folder}/dta.jsonl: no such file or folder; did you mean {command.folder}/data.jsonl?" in err
    assert not (command.folder / "run").exists()


def test_an_empty_file(command: Command, model: Path) -> None:
    code, _, err = command.run(model, command.write())
    assert code == 1
    assert f"{command.folder}/data.jsonl: it is empty" in err


def test_a_file_that_is_cut_off(command: Command, model: Path) -> None:
    path = command.folder / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(said(user(str(n)), ASSISTANT) for n in range(3000)))[:-300])
    code, _, err = command.run(model, path)
    assert code == 1
    assert f"{path}: cannot be read to its end" in err
    assert not list((command.folder / "run").rglob("*.npy"))


def test_rows_in_no_known_format(command: Command, model: Path) -> None:
    code, _, err = command.run(model, command.write(b'{"question": "Why?", "answer": "So."}'))
    assert code == 1
    assert 'columns = { prompt = "question", completion = "answer" }' in err


def test_no_weights(command: Command, model: Path) -> None:
    data = command.write(said(USER, ASSISTANT))
    code, _, err = command.run(command.folder / "nothing", data)
    assert (code, "nothing" in err, "there is no such folder" in err) == (1, True, True)
    (command.folder / "empty").mkdir()
    assert "holds no config.json" in command.run(command.folder / "empty", data)[2]
    bare = command.folder / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert "holds no weights (*.safetensors)" in command.run(bare, data)[2]
    (bare / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    code, _, err = command.run(bare, data)
    assert code == 1
    assert "pytorch_model.bin is a pickle, which may run code and is not read; convert it to safetensors" in err
    assert str(bare) in err
    assert not (command.folder / "run").exists()


def test_a_template_that_cannot_be_trained_with(command: Command, model: Path) -> None:
    template = command.folder / "open.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}")
    code, _, err = command.run(model, command.write(said(USER, ASSISTANT)), changes=(f"model.template={template}",))
    assert code == 1
    assert f"{template}: this chat template does not end a reply with a control token" in err


# Real data


@pytest.mark.parametrize(
    ("name", "completions", "counts", "reasons"),
    [
        (
            "preference_pandalm",
            2,
            {"read": 894, "kept": 817, "bad": 77, "cut": 113, "dropped": 0},
            {
                "cut to max_length = 512 tokens": 113,
                "an assistant turn is empty": 52,
                "its prompt leaves nothing to train within max_length = 512 tokens": 19,
                "content of the assistant turn is bool True, not text (turn 2 of `chosen`)": 6,
            },
        ),
        ("chat_sgd", 1, {"read": 3000, "kept": 3000, "bad": 0, "dropped": 0}, {"cut to max_length = 512 tokens": 2576}),
    ],
)
def test_real_data(shared: Path, tmp_path: Path, name: str, completions: int, counts: dict[str, int], reasons: dict[str, int]) -> None:
    tokenizer = open_tokenizer(str(shared / "models" / "stories260k"), template="zephyr")
    source = Jsonl(str(shared / "data" / f"{name}.jsonl.gz"))
    corpus = taken(source, tokenizer, tmp_path, completions=completions, max_length=512)
    assert {key: corpus.ledger[key] for key in counts} == counts
    assert corpus.ledger["reasons"] == reasons
    assert len(quarantine(corpus)) == sum(reasons.values())

"""Data at the door: each kind of bad row, in each kind of file, is named with its file, its line and a reason; nothing is lost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_rows
import pytest
from bad_rows import TEXTS, encoded, good, kinds, write_json, write_jsonl, write_parquet
from zkit_mistral.scratch import byte_pairs
from zkit_mistral.templates import NAMED
from zkit_mistral.tokenizer import ChatTokenizer
from zkit_sources.files import Json, Jsonl, LocalFiles, Parquet

from zephyr_kit.admission import Door
from zephyr_kit.corpus import Corpus, DataError, prepare, refuse_bad_rows
from zephyr_kit.example import ExampleError, Message
from zephyr_kit.exits import Exit
from zephyr_kit.first_look import look_over
from zephyr_kit.portion import Portion

FILES: dict[str, tuple[type[LocalFiles], Callable[..., tuple[Path, str]]]] = {
    "jsonl": (Jsonl, write_jsonl),
    "json": (Json, write_json),
    "parquet": (Parquet, write_parquet),
}
COMPLETIONS = {"sft": 1, "dpo": 2}


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    tokens = byte_pairs(["Why? So. No. long user assistant"], 300)
    tokens.chat_template = NAMED["zephyr"]
    return ChatTokenizer(tokens)


def taken(source: LocalFiles, tokenizer: ChatTokenizer, cache: Path, objective: str) -> Corpus:
    return prepare([Portion(source)], tokenizer, Door(COMPLETIONS[objective], 128, "cut"), cache=cache)


def cases(objective: str, use: str) -> dict[str, Any]:
    if use == "parquet":
        return kinds(objective)
    row = encoded(good(objective))
    spoils_the_file = ("broken off", "single quotes") if use == "json" else ()
    texts = {f"text: {name}": spoil(row) for name, spoil in TEXTS.items() if name not in spoils_the_file}
    return {**kinds(objective), **texts}


@pytest.mark.parametrize("use", FILES)
@pytest.mark.parametrize("objective", COMPLETIONS)
def test_every_kind_is_named_with_file_line_and_reason(tmp_path: Path, tokenizer: ChatTokenizer, use: str, objective: str) -> None:
    source, write = FILES[use]
    found = cases(objective, use)
    assert len(found) >= 60
    silent = []
    for number, (name, bad) in enumerate(found.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path, origin = write(folder, objective, bad)
        corpus = taken(source(str(path)), tokenizer, folder / "cache", objective)
        lines = list(corpus.quarantined())
        named = [line for line in lines if line["fate"] == "bad" and line["reason"]]
        if [line["origin"] for line in named] != [origin] or len(corpus) != 2 or corpus.ledger["read"] != 3:
            silent.append((name, lines, corpus.ledger["kept"]))
    assert not silent


def test_a_bad_row_of_a_million_is_refused_before_any_is_tokenised(tmp_path: Path) -> None:
    """In small; a million rows take 20 s of one core."""
    path = tmp_path / "rows.jsonl"
    rows = [encoded(good("sft", number)) for number in range(999)]
    path.write_bytes(b"\n".join([*rows[:700], encoded({"messages": [bad_rows.QUESTION]}), *rows[700:]]))
    quarantine, seen = tmp_path / "quarantine.jsonl", []
    asked: dict[str, Any] = {"name": "stages.sft.data", "quarantine": quarantine, "on_rows": seen.append}
    look_over([Portion(Jsonl(str(path)))], Door(1, 128, "cut"), allowed=0.001, **asked)
    assert seen[-1] == 1000
    assert not quarantine.exists(), "what is bad is told again when all is tokenised"
    with pytest.raises(DataError, match=r"1 of 1,000 rows are bad") as caught:
        look_over([Portion(Jsonl(str(path)))], Door(1, 128, "cut"), allowed=0.0, **asked)
    assert caught.value.exit == Exit.BAD_DATA
    assert f"{path}:701: no assistant turn to learn from" in str(caught.value)
    assert json.loads(quarantine.read_text())["origin"] == f"{path}:701"


# Fuzzed rows


def fuzzed(draw: random.Random, objective: str) -> bytes:
    """A row with something about it changed: a value, a key, the bytes, or nothing."""
    row: Any = good(objective, draw.randrange(10**6))
    if draw.random() < 0.8:
        row = altered(draw, row)
    data = encoded(row)
    if draw.random() < 0.3:
        place = draw.randrange(len(data) + 1)
        noise = draw.choice([b"", b"\xff", b'"', b"{", b"]", b"\\", b"\\ud800", b"\x00", b"</s>", b"1e999", b"NaN", draw.randbytes(3)])
        data = data[:place] + noise + data[place + draw.randrange(3) :]
    return data.replace(b"\n", b" ").replace(b"\r", b" ")


def altered(draw: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        rest = {name: inner for name, inner in value.items() if name != key or draw.random() < 0.9}
        return {**rest, draw.choice([key, key, key, key[:-1], key.upper()]): altered(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        return [*value[:place], altered(draw, value[place]), *value[place + draw.randrange(3) :]]
    texts = ["", " ", "x" * 5000, "\0", "</s>", "é👩\u200d👩", "\u200b"]
    junk = [None, True, 0, -1.5, 10**400, *texts, [], {}, [[]], [value, value], {"content": value}]
    return draw.choice([*junk, value, value])


@pytest.mark.parametrize("objective", COMPLETIONS)
@pytest.mark.parametrize("use", ["jsonl", "json"])
def test_fuzzed_rows_are_all_accounted_for(tmp_path: Path, tokenizer: ChatTokenizer, use: str, objective: str) -> None:
    """2,500 in each of four files."""
    draw = random.Random(f"{use} {objective}")
    rows = [encoded(good(objective)), *(fuzzed(draw, objective) for _ in range(2499))]
    if use == "json":
        rows = [row for row in rows if is_balanced(row)]
        rows += [encoded(good(objective, number)) for number in range(2500 - len(rows))]
    path = tmp_path / f"rows.{use}"
    path.write_bytes(b"\n".join(rows) if use == "jsonl" else b"[\n" + b",\n".join(rows) + b"\n]")
    corpus = taken(FILES[use][0](str(path)), tokenizer, tmp_path / "cache", objective)
    ledger = corpus.ledger
    assert ledger["read"] == sum(bool(row.strip()) for row in rows) == 2500
    assert ledger["read"] == ledger["kept"] + ledger["bad"]
    assert len(corpus) == ledger["kept"]
    assert min(ledger["kept"], ledger["bad"]) > 250
    assert len(list(corpus.quarantined())) == ledger["bad"] + ledger["cut"]


def is_balanced(row: bytes) -> bool:
    """Whether it is a row of a list at all: one that opens a bracket spoils the file."""
    try:
        json.loads(row)
    except ValueError:
        return False
    return True


# Letters that a tokenizer makes others of


def test_letters_that_become_a_control_token_are_refused() -> None:
    """A tokenizer may make plain letters of full-width ones before it looks for control tokens."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken(letter) for letter in pre_tokenizers.ByteLevel.alphabet()])
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=True)])
    tokens = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=NAMED["zephyr"])
    it = ChatTokenizer(tokens)
    disguised = "</ｓ>"
    assert it.tokens.convert_tokens_to_ids("</s>") in it.tokens(disguised)["input_ids"], "else this test shows nothing"
    assert it.prompt_ids([Message("user", "s")])
    with pytest.raises(ExampleError, match="letters that the tokenizer reads as a control token"):
        it.prompt_ids([Message("user", f"a{disguised}b")])


def test_an_answer_that_is_cut_away_is_named_and_cut_rows_are_counted(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    dialogues = ([bad_rows.user("a" * 200), bad_rows.ANSWER], [bad_rows.QUESTION, bad_rows.reply("b" * 500)])
    rows = [good("sft"), *({"messages": turns} for turns in dialogues)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(map(encoded, rows)))
    corpus = taken(Jsonl(str(path)), tokenizer, tmp_path / "cache", "sft")
    assert {key: corpus.ledger[key] for key in ("read", "kept", "bad", "cut")} == {"read": 3, "kept": 2, "bad": 1, "cut": 1}
    with pytest.raises(DataError, match=r"rows.jsonl:2: its prompt leaves nothing to train within max_length = 128 tokens"):
        refuse_bad_rows(corpus, allowed=0.01, name="stages.sft.data")

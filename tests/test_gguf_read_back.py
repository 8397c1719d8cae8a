"""A GGUF file's vocabulary is read back, and one that is not the tokenizer's is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from exports import Silent, write_run, write_weights
from gguf import GGUFWriter
from zkit_export.exporting import Export
from zkit_export.gguf_file import _describe_tokens
from zkit_export.read_back import check_tokens
from zkit_export.refusal import ParityError
from zkit_export.served import Served
from zkit_export.vocabulary import read_vocabulary
from zkit_export.wish import Wish
from zkit_mistral.scratch import byte_pairs
from zkit_mistral.templates import ZEPHYR

from zephyr_kit.models import find_model
from zephyr_kit.plugins import Plugins


@pytest.fixture
def folder(request, tmp_path: Path) -> Path:
    """Pairs of bytes; or of characters with bytes to fall back on, as sentencepiece has them."""
    if request.param == "gpt2":
        byte_pairs(["the cat and the hat"] * 9, 270).save_pretrained(tmp_path)
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(request.getfixturevalue("shared") / "models" / "stories260k" / name, tmp_path / name)
    (tmp_path / "chat_template.jinja").write_text(ZEPHYR, "utf-8")
    return tmp_path


def read_back(folder: Path) -> str:
    """Of a file that holds a vocabulary alone, with two tokens more than the tokenizer has."""
    served, file = Served(folder), folder / "one.gguf"
    size = served.encoder().get_vocab_size() + 2
    writer = GGUFWriter(file, "llama")
    _describe_tokens(writer, served, read_vocabulary(folder / "tokenizer.json", size))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return check_tokens(served, file)


@pytest.mark.parametrize(("folder", "joined"), [("gpt2", "merges"), ("llama", "the order of their scores")], indirect=["folder"])
def test_what_is_written_is_the_tokenizers_and_what_was_compared_is_said(folder, joined):
    told = read_back(folder)
    assert joined in told
    assert told.endswith("and the special tokens, read back, are the tokenizer's")


@pytest.mark.parametrize(
    ("folder", "method", "edit", "what"),
    [
        ("gpt2", "add_token_list", lambda tokens: [*tokens[:9], tokens[10], tokens[9], *tokens[11:]], "tokens are"),
        ("gpt2", "add_token_types", lambda kinds: [1 for _ in kinds], "kinds of tokens are"),
        ("gpt2", "add_token_merges", lambda merges: [merges[1], merges[0], *merges[2:]], "merges are"),
        ("llama", "add_token_scores", lambda scores: [-score for score in scores], "scores are"),
        ("llama", "add_eos_token_id", lambda number: number + 1, "eos_token_id is"),
    ],
    indirect=["folder"],
)
def test_another_vocabulary_is_found(folder, monkeypatch, method, edit, what):
    """Neither tensors nor log-probabilities of given ids would tell."""
    right = getattr(GGUFWriter, method)
    monkeypatch.setattr(GGUFWriter, method, lambda self, given: right(self, edit(given)))
    with pytest.raises(ParityError, match=rf"one\.gguf: its {what} not the tokenizer's"):
        read_back(folder)


def test_an_export_is_not_kept_then(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", "full", write_weights(tmp_path / "weights"))
    right, said = GGUFWriter.add_token_list, []
    export = Export(find_model(str(run), Plugins()), Wish(tmp_path / "out", gguf=("f32",)), torch.device("cpu"), Silent(said))
    monkeypatch.setattr(GGUFWriter, "add_token_list", lambda self, tokens: right(self, [*tokens[:-2], tokens[-1], tokens[-2]]))
    with pytest.raises(ParityError, match="its tokens are not the tokenizer's"):
        export.run()
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    export.run()
    assert any(line.startswith("run-sft-F32.gguf: 258 tokens with their kinds, 0 merges") for line in said)

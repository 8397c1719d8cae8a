"""What a GGUF file says of the model's language, read back and held against the exported tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Encoder

from zkit_export.refusal import ParityError
from zkit_export.served import TOKENIZER_FILE, Served
from zkit_export.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

TEMPLATE, PREFIX = "tokenizer.chat_template", "tokenizer.ggml."
IDS = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}


def check_template(served: Served, file: Path) -> None:
    """Raise ParityError unless the file holds the folder's chat template, letter for letter."""
    from gguf import GGUFReader

    field = GGUFReader(file).fields.get(TEMPLATE)
    if field is None or field.contents() != served.template:
        raise ParityError(f"{file.name}: holds {'no' if field is None else 'another'} chat template than was trained with; it is not kept")


def check_tokens(served: Served, file: Path) -> str:
    """Raise ParityError unless tokens, kinds, merges or scores, and special tokens are the tokenizer's; in words, what was compared."""
    from gguf import GGUFReader

    held = {key.removeprefix(PREFIX): field.contents() for key, field in GGUFReader(file).fields.items() if key.startswith(PREFIX)}
    pairs = json.loads((served.folder / TOKENIZER_FILE).read_text("utf-8"))["model"]["merges"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    for what in _differing(held, served, merges):
        raise ParityError(f"{file.name}: its {what} not the tokenizer's; it is not kept")
    joined = "the order of their scores" if held["model"] == "llama" else f"{len(merges):,} merges"
    return f"{file.name}: {len(held['tokens']):,} tokens with their kinds, {joined} and the special tokens, read back, are the tokenizer's"


def _differing(held: Mapping[str, Any], served: Served, merges: Sequence[str]) -> Iterator[str]:
    encoder, tokens = served.encoder(), held["tokens"]
    wanted = [encoder.id_to_token(number) or f"[PAD{number}]" for number in range(max(len(tokens), encoder.get_vocab_size()))]
    if tokens != wanted:
        yield "tokens are"
    may_be = _kinds(encoder, len(wanted))
    if len(held["token_type"]) != len(wanted) or any(kind not in may for kind, may in zip(held["token_type"], may_be, strict=True)):
        yield "kinds of tokens are"
    if held["model"] != "llama" and held.get("merges", []) != merges:
        yield "merges are"
    if held["model"] == "llama" and not _in_order(tokens, held["scores"], merges):
        yield "scores are"
    for name, key in IDS.items():
        special = served.special.get(name)
        if held.get(key) != (None if special is None else encoder.token_to_id(special)):
            yield f"{key} is"


def _kinds(encoder: Encoder, count: int) -> list[set[int]]:
    """What each token may be."""
    added = encoder.get_added_tokens_decoder()
    plain = [{UNUSED} if encoder.id_to_token(number) is None else {NORMAL, BYTE} for number in range(count)]
    return [({CONTROL, UNKNOWN} if added[n].special else {USER_DEFINED, UNKNOWN}) if n in added else may for n, may in enumerate(plain)]


def _in_order(tokens: Sequence[str], scores: Sequence[float], merges: Sequence[str]) -> bool:
    """Whether pairs are joined in the order of the merges: an earlier one has a higher score, and what no merge makes, the lowest."""
    score = dict(zip(tokens, scores, strict=True))
    made = [score[whole] for whole in dict.fromkeys(merge.replace(" ", "") for merge in merges)]
    rest = [score[token] for token in score.keys() - {merge.replace(" ", "") for merge in merges} if len(token) > 1]
    return all(earlier > later for earlier, later in pairwise(made)) and max(rest, default=-len(merges)) < min(made, default=0)

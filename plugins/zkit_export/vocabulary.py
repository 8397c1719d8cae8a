"""A tokenizer of the tokenizers library as GGUF has it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_kit import ZkitError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens (gguf.TokenType)."""
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {WORDS + r"\p{N}{1,3}" + REST: "llama-bpe", WORDS + r"\p{N}" + REST: "qwen2"}
"""How text is split before it is encoded, and what llama.cpp calls that."""
SPLIT_BY_BYTE_LEVEL = "gpt-2"
BLANK = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, and how text is cut into them."""

    model: str
    """`llama` for pairs of characters with bytes to fall back on, as sentencepiece has them; `gpt2` for pairs of bytes."""
    tokens: Sequence[str]
    kinds: Sequence[int]
    scores: Sequence[float]
    """For `llama`: the higher, the earlier a pair is joined."""
    merges: Sequence[str]
    """For `gpt2`."""
    pre: str
    """How text is split before, by llama.cpp's name."""
    prefixed: bool
    """Whether text gets a blank in front."""


def read_vocabulary(file: Path, size: int) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`, filled up to the `size` of the model's; raises ZkitError for one that GGUF cannot hold."""
    facts: dict[str, Any] = json.loads(file.read_text("utf-8"))
    model = facts["model"]
    if model["type"] != "BPE":
        raise ZkitError(f"{file}: a vocabulary of type {model['type']} is not written as GGUF, only byte-pair encodings (BPE)")
    tokens, kinds = _tokens(facts, size)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    if model.get("byte_fallback"):
        prefixed = _has(facts["normalizer"], "Prepend") or _has(facts["pre_tokenizer"], "Metaspace")
        return Vocabulary("llama", tokens, kinds, _scores(tokens, merges), (), "default", prefixed)
    return Vocabulary("gpt2", tokens, kinds, (), merges, _split(facts, file), prefixed=False)


def _tokens(facts: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    known: dict[int, str] = {number: token for token, number in facts["model"]["vocab"].items()}
    bytes_too = bool(facts["model"].get("byte_fallback"))
    kinds = {number: BYTE if bytes_too and _is_byte(token) else NORMAL for number, token in known.items()}
    for added in facts["added_tokens"]:
        known[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
        if added["content"] == facts["model"].get("unk_token") or added["content"] == "<unk>":
            kinds[added["id"]] = UNKNOWN
    count = max(size, max(known) + 1)
    return [known.get(n, f"[PAD{n}]") for n in range(count)], [kinds.get(n, UNUSED) for n in range(count)]


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """Sentencepiece joins the pair whose whole has the highest score; so it is the first pair by rank."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(token, len(merges) if len(token) > 1 else 0)) for token in tokens]


def _split(facts: Mapping[str, Any], file: Path) -> str:
    pre = facts["pre_tokenizer"] or {}
    if pre.get("type") == "ByteLevel" and pre.get("use_regex") and not pre.get("add_prefix_space"):
        return SPLIT_BY_BYTE_LEVEL
    patterns = [part["pattern"].get("Regex") for part in pre.get("pretokenizers", ()) if part["type"] == "Split"]
    if len(patterns) == 1 and patterns[0] in SPLITS:
        return SPLITS[patterns[0]]
    raise ZkitError(
        f"{file}: splits text in a way that is not known here by llama.cpp's name for it, so that a server would make other tokens; "
        "convert the exported folder with llama.cpp's convert_hf_to_gguf.py"
    )


def _has(part: Mapping[str, Any] | None, kind: str) -> bool:
    return json.dumps({"type": kind})[1:-1] in json.dumps(part)

"""Models of Mistral's shape with random weights, the same ones every time, and adapters that start alike on both sides."""

from __future__ import annotations

import math
import os
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.dialogues import shared

SEED = 0
CONTEXT = 4096


@dataclass(frozen=True)
class Shape:
    """The numbers of a Mistral; 32,000 tokens, head and embeddings untied."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int


SHAPES = {
    "5m": Shape(width=72, layers=4, heads=3, kv_heads=1, mlp_width=320),
    "25m": Shape(width=256, layers=8, heads=4, kv_heads=2, mlp_width=1152),
    "37m": Shape(width=384, layers=8, heads=6, kv_heads=2, mlp_width=1024),
    "160m": Shape(width=768, layers=12, heads=12, kv_heads=4, mlp_width=3328),
    "7b": Shape(width=4096, layers=32, heads=32, kv_heads=8, mlp_width=14336),
}
"""By their number of parameters: 4.9, 25.0, 37.2, 160.0 and 7,242 million."""


def place_of(name: str, dtype: str, home: Path) -> Path:
    """Where the model is, or will be."""
    return home / "models" / f"{name}-{dtype}"


def tokenizer_of(home: Path) -> Path:
    """The folder of the tokenizer: one that was put beside prepared data, or the one of the shared folder."""
    kept = home / "tokenizer"
    return kept if kept.is_dir() else shared() / "models" / "mistral-7b-v0.1-tokenizer"


def make(name: str, dtype: str, home: Path, device: str = "cpu") -> Path:
    """The model in Hugging Face format, its values drawn on the device; written once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = place_of(name, dtype, home)
    if not place.exists():
        staging = place.with_name(f".{place.name}.{os.getpid()}")
        torch.manual_seed(SEED)
        tokens = AutoTokenizer.from_pretrained(tokenizer_of(home))
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config(SHAPES[name], tokens), dtype=getattr(torch, dtype))
        model.save_pretrained(staging)
        tokens.save_pretrained(staging)
        try:
            staging.rename(place)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return place


def config(shape: Shape, tokens: Any) -> Any:
    """The shape in transformers' words."""
    from transformers import MistralConfig

    return MistralConfig(
        vocab_size=len(tokens),
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        sliding_window=None,
        tie_word_embeddings=False,
        max_position_embeddings=CONTEXT,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.mlp_width,
    )


def draw_adapters(named_parameters: Iterable[tuple[str, Any]]) -> None:
    """Give the first matrix of each adapter, if there is one, values that depend on its layer alone, as wide as peft draws them."""
    import torch

    for name, parameter in named_parameters:
        if "lora_A" in name:
            generator = torch.Generator().manual_seed(zlib.crc32(name[name.index("layers.") :].encode()))
            bound = 1 / math.sqrt(parameter.shape[1])
            with torch.no_grad():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

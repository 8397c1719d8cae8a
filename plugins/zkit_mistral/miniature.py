"""A model shrunken for a smoke run: the same architecture, random weights, offline."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zephyr_kit import ZkitError
from zkit_mistral.opening import Origin
from zkit_mistral.quiet import quiet
from zkit_mistral.scratch import byte_pairs, mistral_config

if TYPE_CHECKING:
    from zkit_mistral.settings import Settings

WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}


def make_miniature(settings: Settings, folder: Path) -> Path:
    """Write the model and a byte tokenizer into a folder in Hugging Face format."""
    from transformers import AutoModelForCausalLM

    place = folder / "model"
    tokenizer = byte_pairs([], 258)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(settings, tokenizer), dtype=getattr(torch, settings.dtype))
    with quiet():
        model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def _config(settings: Settings, tokenizer: Any) -> Any:
    """The model's own configuration with smaller numbers where it is at hand, else Mistral's."""
    if settings.weights is not None:
        try:
            with warnings.catch_warnings(action="ignore"):
                config = Origin(settings.place, settings.revision, settings.remote_code).config(local_files_only=True)
        except ZkitError:
            pass  # not on this machine; a smoke run asks no network
        else:
            config.update({**_shrunken(config), **_ids(tokenizer)})
            return config
    return mistral_config(tokenizer, **WIDTHS)


def _shrunken(config: Any) -> dict[str, Any]:
    smaller: dict[str, Any] = {key: value for key, value in WIDTHS.items() if hasattr(config, key)}
    if kinds := getattr(config, "layer_types", None):
        # A layer of each kind, as far as there is room.
        smaller["layer_types"] = [*dict.fromkeys(kinds), *kinds][: WIDTHS["num_hidden_layers"]]
    return smaller


def _ids(tokenizer: Any) -> dict[str, Any]:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    return {"vocab_size": len(tokenizer), **ends}

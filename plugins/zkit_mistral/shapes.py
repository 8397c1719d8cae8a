"""The shape of a model, from its configuration where that is at hand, else from a table of well-known ones."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from zephyr_kit import ZkitError
from zkit_mistral.opening import Origin
from zkit_mistral.scratch import shape_of

if TYPE_CHECKING:
    from zkit_mistral.settings import Settings

MISTRAL_7B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
TABLED = {
    "mistralai/mistral-7b-v0.1": {**MISTRAL_7B, "sliding_window": 4096},
    "huggingfaceh4/mistral-7b-sft-beta": {**MISTRAL_7B, "sliding_window": 4096},
    "huggingfaceh4/zephyr-7b-alpha": {**MISTRAL_7B, "sliding_window": 4096},
    "huggingfaceh4/zephyr-7b-beta": {**MISTRAL_7B, "sliding_window": 4096},
    "mistralai/mistral-7b-instruct-v0.1": {**MISTRAL_7B, "sliding_window": 4096},
    "mistralai/mistral-7b-v0.3": {**MISTRAL_7B, "vocab_size": 32768, "sliding_window": None},
}
"""As their configurations have it."""


def find_config(settings: Settings) -> tuple[Any, str]:
    """The model's configuration, and a remark on where it is from."""
    from transformers import MistralConfig

    if settings.scratch is not None:
        # A text of few pairs gives fewer tokens than asked for; never more.
        shape = {**shape_of(settings.scratch), "vocab_size": settings.scratch.vocabulary}
        return MistralConfig(**shape, sliding_window=None, tie_word_embeddings=True), ""
    try:
        with warnings.catch_warnings(action="ignore"):
            return Origin(settings.place, settings.commit, settings.remote_code).config(local_files_only=True), ""
    except ZkitError as error:
        known = TABLED.get(str(settings.weights).lower())
        if known is None:
            raise ZkitError(f"the configuration of {settings.weights} is not on this machine") from error
        return MistralConfig(**known), f"{settings.weights} is not on this machine: its shape is from a table"

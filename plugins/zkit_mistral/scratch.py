"""Models and tokenizers made on the spot."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zephyr_kit.cache import cache_folder, used
from zephyr_kit.config import plain
from zephyr_kit.example import Example
from zkit_mistral.settings import Scratch

BOS, EOS = "<s>", "</s>"


def learn_tokenizer(scratch: Scratch) -> Path:
    """A folder with a byte-pair encoding learned from the text; learned once."""
    learned_from = json.dumps([[source.fingerprint() for source in scratch.text], scratch.vocabulary])
    key = hashlib.blake2b(learned_from.encode(), digest_size=16).hexdigest()
    folder = cache_folder("tokenizers") / key
    if not folder.exists():
        staging = folder.with_name(f".{key}.{os.getpid()}")
        byte_pairs(_texts(scratch), scratch.vocabulary).save_pretrained(staging)
        try:
            staging.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    used(folder / "tokenizer.json")
    return folder


def byte_pairs(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level byte-pair encoding (no unknown token), as a tokenizer of transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False)


def mistral_config(tokenizer: Any, **shape: Any) -> Any:
    """A Mistral configuration that fits the tokenizer; all in one window, embeddings tied."""
    from transformers import MistralConfig

    return MistralConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sliding_window=None,
        tie_word_embeddings=True,
        **shape,
    )


def shape_of(scratch: Scratch) -> dict[str, Any]:
    """The names that transformers gives to a shape."""
    facts = plain(scratch)
    names = {
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "mlp_width": "intermediate_size",
        "context": "max_position_embeddings",
    }
    return {theirs: facts[ours] for ours, theirs in names.items()}


def _texts(scratch: Scratch) -> Iterator[str]:
    for row in itertools.chain.from_iterable(source.rows() for source in scratch.text):
        if isinstance(row, Example):
            yield from (message.content for part in (row.prompt, *row.completions) for message in part)

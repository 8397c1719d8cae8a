"""Tiny random models and random examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zkit_mistral.quiet import quiet
from zkit_mistral.scratch import byte_pairs

from zephyr_kit.batch import Tree
from zephyr_kit.testing.stand_ins import Table, TablePolicy
from zephyr_kit.trees import Trees

__all__ = ["ListCorpus", "Table", "TablePolicy", "logits_logp", "random_trees", "write_model"]

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # larger than usual, so that the model has an opinion
}


def write_model(folder: Path, architecture: str = "Mistral", *, dtype: torch.dtype = torch.float32, **shape: Any) -> Path:
    """A model with random weights and a byte tokenizer, in Hugging Face format."""
    import transformers

    tokenizer = byte_pairs([], 258)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    ids = {"vocab_size": len(tokenizer), **ends}
    window = {"sliding_window": None} if architecture == "Mistral" else {}
    kind = "Gemma3Text" if architecture == "Gemma3" else architecture
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **ids, **window, **shape})
    torch.manual_seed(0)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).to(dtype)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_trees(
    count: int, *, completions: int = 1, seed: int = 0, vocabulary: int = 258, longest: int = 12, all_trained: bool = True
) -> list[Tree]:
    """Examples of random tokens, with prompts of 1 to `longest` tokens and completions likewise."""
    draw = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return draw.integers(2, vocabulary, draw.integers(1, longest + 1)).astype(np.int32)

    def flags(size: int) -> np.ndarray:
        chosen = draw.random(size) < (2 if all_trained else 0.6)
        chosen[-1] = True
        return chosen

    trees = []
    for number in range(count):
        replies = tuple(ids() for _ in range(completions))
        ratings = tuple(float((number + place) % 2) for place in range(completions))
        trees.append(Tree(ids(), replies, tuple(flags(len(reply)) for reply in replies), ratings))
    return trees


class ListCorpus(Trees):
    """Trees in a list, with what a plan asks of a corpus."""

    @property
    def num_targets(self) -> np.ndarray:
        return np.array([sum(int(flags.sum()) for flags in tree.trained) for tree in self.trees], np.int64)


def logits_logp(model: Any, batch_of: Sequence[Tree]) -> list[float]:
    """Log-probability of every target by transformers' own logits, one row for each completion."""
    values: list[float] = []
    for tree in batch_of:
        for ids, trained in zip(tree.completions, tree.trained, strict=True):
            row = torch.from_numpy(np.concatenate([tree.prompt, ids]).astype(np.int64))[None]
            with torch.no_grad():
                logp = model(row, use_cache=False).logits.double().log_softmax(-1)[0]
            first = len(tree.prompt)
            at = torch.arange(max(first, 1), row.shape[1])
            picked = logp[at - 1, row[0, at]]
            values += picked[torch.from_numpy(trained[-len(at) :].copy())].tolist()
    return values

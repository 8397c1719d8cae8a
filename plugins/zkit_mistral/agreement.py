"""Whether packed rows score as the model itself does.

No list of configuration keys can name all that an architecture may do between its embeddings
and its logits: scale them, soften them, mix tokens outside of attention. One short row, scored
both ways when the model is loaded, shows it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zephyr_kit import ZkitError
from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.protocols import Attention
from zkit_mistral.attention import NAME
from zkit_mistral.policy import Scorer

PROMPT, REPLY = 4, 6
DRAWS = 3


@torch.no_grad()
def check_agreement(model: Any, attention: Attention, *, tolerance: float) -> None:
    """Refuse a bare model whose logits say something else; `tolerance` is a share of how far its log-probabilities spread.

    It must be so on each of a few rows: where experts are chosen, a rounding may choose another.
    """
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            agrees = any(_agree(model, attention, tolerance, seed=seed) for seed in range(DRAWS))
    finally:
        model.train(training)
    if not agrees:
        raise ZkitError(
            f"{type(model).__name__}: packed rows do not score as the model's own logits do. It does something between its embeddings "
            "and its logits that they leave out (it scales the logits, say), so `mistral` cannot train it"
        )


def _agree(model: Any, attention: Attention, tolerance: float, *, seed: int) -> bool:
    """Whether both say the same of a few random tokens."""
    tokens = np.random.default_rng(seed).integers(model.config.vocab_size, size=PROMPT + 2 * REPLY).astype(np.int32)
    prompt, *replies = np.split(tokens, [PROMPT, PROMPT + REPLY])
    ours, theirs = _packed(model, attention, prompt, replies), _by_logits(model, prompt, replies)
    gap, spread = (ours - theirs).square().mean().sqrt(), theirs.std()
    return bool(gap <= tolerance * spread)


def _packed(model: Any, attention: Attention, prompt: Any, replies: Any) -> Tensor:
    """Two completions that share a prompt, so that one that sees the other, or a wrong position, shows."""
    tree = Tree(prompt, tuple(replies), tuple(np.ones(len(reply), np.bool_) for reply in replies))
    logp_M: Tensor = Scorer(model, attention)(lay_out([tree]).to(model.device))
    return logp_M.double()


def _by_logits(model: Any, prompt: Any, replies: Any) -> Tensor:
    """The same by transformers alone, a row for each completion."""
    rows = torch.from_numpy(np.stack([np.concatenate([prompt, reply]) for reply in replies])).long().to(model.device)
    model.set_attn_implementation("eager")
    try:
        logits = model(input_ids=rows, use_cache=False).logits[:, PROMPT - 1 : -1]
    finally:
        model.set_attn_implementation(NAME)
    logp: Tensor = logits.double().log_softmax(-1).gather(-1, rows[:, PROMPT:, None])
    return logp.flatten()

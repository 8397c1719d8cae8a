"""Whether packed rows score as the model itself does.

No list of configuration keys can name all that an architecture may do between its embeddings
and its logits: scale them, soften them, mix tokens outside of attention. One short row, scored
both ways when the model is loaded, shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zephyr_kit import ZkitError
from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.protocols import Attention
from zkit_mistral.attention import NAME
from zkit_mistral.policy import Scorer, bare

PROMPT, REPLY = 4, 6
DRAWS = 3
Logits = Callable[[Any, Tensor], Tensor]


def check_agreement(model: Any, attention: Attention, *, tolerance: float) -> None:
    """Refuse a bare model whose logits say something else than our packed rows."""
    if not agrees(Scorer(model, attention), tolerance=tolerance, whole=_eager):
        raise ZkitError(
            f"{type(model).__name__}: packed rows do not score as the model's own logits do. It does something between its embeddings "
            "and its logits that they leave out (it scales the logits, say), so `mistral` cannot train it"
        )


@torch.no_grad()
def agrees(scorer: Scorer, *, tolerance: float, whole: Logits, share_prompts: bool = True) -> bool:
    """Whether packed rows score as the logits of whole ones do; `tolerance` is a share of how far log-probabilities spread.

    It must be so on one of a few rows: where experts are chosen, a rounding may choose another.
    """
    model = bare(scorer.model)
    training = model.training
    scorer.eval()
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            return any(_gap(scorer, whole, share_prompts=share_prompts, seed=seed) <= tolerance for seed in range(DRAWS))
    finally:
        scorer.train(training)


def _gap(scorer: Scorer, whole: Logits, *, share_prompts: bool, seed: int) -> float:
    """How far both lie apart on a few random tokens."""
    model = bare(scorer.model)
    tokens = np.random.default_rng(seed).integers(model.config.vocab_size, size=PROMPT + 2 * REPLY).astype(np.int32)
    prompt, *replies = np.split(tokens, [PROMPT, PROMPT + REPLY])
    # Two completions in one row, so that one that sees the other, or a wrong position, shows.
    tree = Tree(prompt, tuple(replies), tuple(np.ones(len(reply), np.bool_) for reply in replies))
    ours = scorer(lay_out([tree], share_prompts=share_prompts).to(model.device)).double()
    rows = torch.from_numpy(np.stack([np.concatenate([prompt, reply]) for reply in replies])).long().to(model.device)
    logp = whole(model, rows)[:, PROMPT - 1 : -1].double().log_softmax(-1)
    theirs = logp.gather(-1, rows[:, PROMPT:, None]).flatten()
    return float((ours - theirs).square().mean().sqrt() / theirs.std())


def _eager(model: Any, rows: Tensor) -> Tensor:
    """The logits of (rows, tokens) by transformers alone."""
    model.set_attn_implementation("eager")
    try:
        logits: Tensor = model(input_ids=rows, use_cache=False).logits
    finally:
        model.set_attn_implementation(NAME)
    return logits

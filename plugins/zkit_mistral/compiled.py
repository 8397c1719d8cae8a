"""Layers compiled with torch.compile, all but their attention; and held to what they are without it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zephyr_kit import ZkitError
from zephyr_kit.batch import Tree, lay_out
from zkit_mistral.attention import register
from zkit_mistral.policy import Scorer, bare

PROMPT, REPLY, SEED = 4, 12, 0
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Of a gradient, as a share of its norm."""
OF_SHORT_TYPES, OF_FLOAT8 = 0.1, 0.3


def compile_layers(model: Any) -> None:
    """Compile each repeated layer once for rows of any length.

    Attention is left out: its kernels loop over the segments of a row, and would be compiled anew for each.
    """
    register(torch.compiler.disable)
    for layer in _layers(model):
        layer.compile(dynamic=True)


def check_compiled(scorer: Scorer, *, float8: bool = False) -> None:
    """Refuse layers that, compiled, score a short row or have gradients otherwise than not compiled: torch 2.11 did, on one GPU."""
    model = bare(scorer.model)
    found = _results(scorer)
    with _not_compiled(model):
        expected = _results(scorer)
    gap = max(_gap(one, other) for one, other in zip(found, expected, strict=True))
    if gap > (OF_FLOAT8 if float8 else TOLERANCE.get(model.dtype, OF_SHORT_TYPES)):
        raise ZkitError(
            f"[model] compile: what torch {torch.__version__} makes of {type(model).__name__} on {model.device} scores, or has gradients, "
            f"{gap:.1%} away from what it is without; leave `compile` out"
        )


def _layers(model: Any) -> Any:
    return getattr(model, model.base_model_prefix).layers


@contextmanager
def _not_compiled(model: Any) -> Iterator[None]:
    kept = [(layer, layer._compiled_call_impl) for layer in _layers(model)]
    for layer, _ in kept:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, compiled in kept:
            layer._compiled_call_impl = compiled


def _results(scorer: Scorer) -> list[Tensor]:
    """The scores of two replies, and their gradients by what is trained of the first layer, which all others stand between."""
    model, training = bare(scorer.model), scorer.training
    trained = [parameter for parameter in _layers(model)[0].parameters() if parameter.requires_grad]
    tokens = np.random.default_rng(SEED).integers(model.config.vocab_size, size=PROMPT + 2 * REPLY).astype(np.int32)
    prompt, *replies = np.split(tokens, [PROMPT, PROMPT + REPLY])
    batch = lay_out([Tree(prompt, tuple(replies), tuple(np.ones(REPLY, np.bool_) for _ in replies))]).to(model.device)
    # What is dropped out, or added, at random is not the same twice.
    scorer.train(not scorer.noise and not any(isinstance(module, nn.Dropout) and module.p for module in scorer.modules()))
    try:
        logp_M = scorer(batch)
        return [logp_M.detach(), *torch.autograd.grad(logp_M.sum(), trained)]
    finally:
        scorer.train(training)


def _gap(one: Tensor, other: Tensor) -> float:
    apart = float((one - other).double().norm())
    if not math.isfinite(apart):
        return math.inf
    return apart / max(float(other.double().norm()), torch.finfo(torch.float32).tiny) if apart else 0.0

"""Liger's Triton kernels for RMSNorm, SwiGLU and rotary embeddings (arXiv 2410.10989), on a CUDA GPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zkit_mistral.made import mark


def scaled(self: Any, hidden: Tensor) -> Tensor:
    """Mistral's RMSNorm, Llama's, Qwen's."""
    return _normed(self, hidden, 0.0, "llama")


def scaled_by_one_more(self: Any, hidden: Tensor) -> Tensor:
    """Gemma's RMSNorm."""
    return _normed(self, hidden, 1.0, "gemma")


def gated(self: Any, hidden: Tensor) -> Tensor:
    """Mistral's feed-forward part, Llama's, Qwen's."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    gate, up = self.gate_proj(hidden), self.up_proj(hidden)
    # Its backward pass puts gradients in the place of both, which comes after that of what reads their product.
    down: Tensor = self.down_proj(mark(LigerSiLUMulFunction.apply(gate, up), LigerSiLUMulFunction.apply, gate, up))
    return down


def rotated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """`apply_rotary_pos_emb` of transformers."""
    from liger_kernel.ops.rope import LigerRopeFunction

    pair: tuple[Tensor, Tensor] = LigerRopeFunction.apply(query, key, cos, sin, None, unsqueeze_dim)
    return pair


def _normed(norm: Any, hidden: Tensor, offset: float, casting: str) -> Tensor:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    # Not in place: the gradient that comes in may be wanted elsewhere.
    normed: Tensor = LigerRMSNormFunction.apply(hidden, norm.weight, eps, offset, casting, False)  # noqa: FBT003
    return normed

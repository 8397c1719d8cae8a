"""Layers compiled with torch.compile, all but their attention."""

from __future__ import annotations

from typing import Any

import torch

from zkit_mistral.attention import register


def compile_layers(model: Any) -> None:
    """Compile each repeated layer once for rows of any length.

    Attention is left out: its kernels loop over the segments of a row, and would be compiled anew for each.
    """
    register(torch.compiler.disable)
    for layer in getattr(model, model.base_model_prefix).layers:
        layer.compile(dynamic=True)

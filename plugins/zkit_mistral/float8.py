"""Products of linear layers in float8 (arXiv 2209.05433), through torchao: for whole weights, on a chip that multiplies so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from zephyr_kit import ZkitError
from zephyr_kit.doctor import lacking

CAPABILITY = (8, 9)
"""Ada's; Hopper's and Blackwell's are higher."""
MULTIPLE = 16
"""What both widths of a matrix must divide by."""


def problems(device: torch.device) -> Iterator[str]:
    """Why a device cannot."""
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
    if not capable:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        yield (
            f"[model] fp8: takes a GPU that multiplies in float8 (compute capability {CAPABILITY[0]}.{CAPABILITY[1]}: Ada, Hopper, "
            f'or newer), but the device is {name}; set `fp8` = "none"'
        )
    if find_spec("torchao") is None or lacking("zephyr-kit", "fp8"):
        yield "[model] fp8: needs torchao, which is not installed, or too old: pip install 'zephyr-kit[fp8]'"


def convert(model: Any, recipe: str, *, emulate: bool) -> None:
    """Let the linear layers in the blocks of a model multiply in float8; weights, and what is saved, stay as they are.

    Neither the head nor the embeddings, whose rounding would be the loss's. `emulate` rounds as
    the chip would and multiplies in float32: slow, and there to show what training comes to.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # A row has any number of tokens, over which the gradient of a weight is a sum: the chip wants a multiple of 16.
    config = replace(Float8LinearConfig.from_recipe_name(recipe), pad_inner_dim=True, emulate=emulate)
    layers = getattr(model, model.base_model_prefix).layers
    if not any(_is_fit(layer) for layer in layers.modules()):
        lacks = f"{type(model).__name__} has no linear layer in its blocks whose widths divide by {MULTIPLE}"
        raise ZkitError(f'[model] fp8: {lacks}; set `fp8` = "none"')
    convert_to_float8_training(layers, config=config, module_filter_fn=lambda layer, _: _is_fit(layer))


def remark(recipe: str, *, compiled: bool) -> str:
    """What a plan cannot know of it."""
    if recipe == "none":
        return ""
    slow = "" if compiled else "; without `compile` = true its casts may cost more than its products save"
    return f"products in float8 are counted as bfloat16's, in memory and time{slow}"


def _is_fit(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and not any(width % MULTIPLE for width in layer.weight.shape)

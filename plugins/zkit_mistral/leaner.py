"""Settings of `[model]` that need less memory, the mildest first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zephyr_kit.protocols import Leaner
from zkit_mistral.settings import Lora, Quantize

if TYPE_CHECKING:
    from zkit_mistral.backend import Mistral


def leaner(model: Mistral) -> list[Leaner]:
    """Each with those before it."""
    steps: list[Leaner] = []
    if model.activation_checkpointing != "none" and model.layers_kept:
        model = replace(model, layers_kept=0)
        steps.append(Leaner("layers_kept", "0", model, same_result=True))
    kind: Any
    kinds = {"none": ("selective", "block"), "selective": ("block",), "block": ()}[model.activation_checkpointing]
    for kind in kinds:
        if kind == "block" or not (model.activation_offload or model.compile):
            model = replace(model, activation_checkpointing=kind)
            steps.append(Leaner("activation_checkpointing", f'"{kind}"', model, same_result=True))
    if model.lora is None and model.scratch is None and model.fp8 == "none":
        model = replace(model, lora=Lora())
        steps.append(Leaner("lora", "{ rank = 16, alpha = 16 }", model))
    if model.lora is not None and model.quantize is None and model.scratch is None:
        model = replace(model, quantize=Quantize())
        steps.append(Leaner("quantize", "{ bits = 4 }", model))
    return steps

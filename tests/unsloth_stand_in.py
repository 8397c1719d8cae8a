"""A stand-in for the library unsloth, at the boundary: transformers' own model, with what is peculiar to unsloth's.

Its body is told the lengths of the segments of a row and cuts the row there; its kernels know one active adapter,
and look for a first one; it makes adapters float32; it gives the model a token for padding.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutputWithPast


class FastLanguageModel:
    """What of unsloth's is called."""

    asked: Mapping[str, Any] = types.MappingProxyType({})
    """How the last model was asked for."""
    patched = 0
    trained_with: Any = None

    @classmethod
    def from_pretrained(cls, model_name: str, **how: Any) -> tuple[Any, Any]:
        cls.asked = {"model_name": model_name, **how}
        passed = {name: how[name] for name in ("dtype", "device_map", "revision", "use_safetensors", "quantization_config") if name in how}
        model = AutoModelForCausalLM.from_pretrained(model_name, attn_implementation="eager", **passed)
        model.config.pad_token_id = 0
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):  # of bitsandbytes, on a CPU: a layout without a backward pass
                module.support_avx512bf16_for_cpu = False
        model.model.forward = types.MethodType(_body, model.model)
        return model, AutoTokenizer.from_pretrained(model_name)

    @classmethod
    def patch_peft_model(cls, model: Any, *, use_gradient_checkpointing: Any) -> Any:
        cls.patched += 1
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if "lora_" in name:
                parameter.data = parameter.data.float()
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.register_forward_pre_hook(_look_for_the_adapter)
        return model

    @classmethod
    def for_training(cls, model: Any, *, use_gradient_checkpointing: Any) -> Any:
        cls.trained_with = use_gradient_checkpointing
        if use_gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": True})
        return model.train()


def _look_for_the_adapter(layer: LoraLayer, _: Any) -> None:
    if not layer.disable_adapters:
        assert len(layer.active_adapters) == 1, "requires a single active adapter"


def _body(self: Any, input_ids: Tensor, packed_seq_lengths: Tensor | None = None, **how: Any) -> BaseModelOutputWithPast:
    """Each segment by itself, at its own positions."""
    whole = type(self).forward
    if packed_seq_lengths is None:
        return whole(self, input_ids=input_ids, **how)
    assert packed_seq_lengths.dtype == torch.int32
    assert packed_seq_lengths.device.type == "cpu"
    positions = how.pop("position_ids")
    bounds = [0, *itertools.accumulate(packed_seq_lengths.tolist())]
    assert bounds[-1] == input_ids.shape[1]
    pieces = []
    for first, last in itertools.pairwise(bounds):
        assert positions[0, first:last].tolist() == list(range(last - first)), "positions begin anew with each segment"
        pieces.append(whole(self, input_ids=input_ids[:, first:last], position_ids=positions[:, first:last], **how).last_hidden_state)
    return BaseModelOutputWithPast(last_hidden_state=torch.cat(pieces, dim=1))

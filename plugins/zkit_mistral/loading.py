"""From the `[model]` table and what the stage starts from to a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zephyr_kit import ZkitError
from zephyr_kit.protocols import Start
from zkit_mistral import attention, scratch
from zkit_mistral.adapters import Adapters, base_of, continued_adapters, is_adapter, new_adapters, read_adapters, stacked_adapters
from zkit_mistral.norms import keep_dtype
from zkit_mistral.policy import MistralPolicy
from zkit_mistral.quiet import quiet
from zkit_mistral.tokenizer import ChatTokenizer, open_tokenizer

if TYPE_CHECKING:
    from zkit_mistral.backend import Mistral, Quantize


def tokenizer(backend: Mistral, start: Start) -> ChatTokenizer:
    """The tokenizer that the stage before saved, or the model's own."""
    if start.folder is not None:
        return open_tokenizer(str(start.folder), template="auto")
    place = str(scratch.learn_tokenizer(backend.scratch)) if backend.scratch is not None else str(backend.weights)
    return open_tokenizer(place, template=backend.template, system=backend.system, revision=backend.revision)


def load(backend: Mistral, device: torch.device, *, start: Start, train: bool) -> MistralPolicy:
    """The model with its adapters, on the device."""
    attention.register()
    torch.manual_seed(start.seed)
    chat = tokenizer(backend, start)
    with quiet():
        model = _weights(backend, device, start, chat)
        _check_head(model)
        _keep_differentiable(model)
        if backend.dtype == "float64":
            keep_dtype(model)
        adapters = _adapters(backend, model, start, train=train)
        if adapters is None:
            model.requires_grad_(train)
        if train and backend.activation_checkpointing:
            _checkpoint_activations(model)
    return MistralPolicy(model, adapters, chat, backend.attention, device)


def _weights(backend: Mistral, device: torch.device, start: Start, chat: ChatTokenizer) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, backend.dtype)
    if start.folder is None and backend.scratch is not None:
        config = scratch.mistral_config(chat.tokens, **scratch.shape_of(backend.scratch))
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME).to(device)
    place, revision = _place(backend, start)
    return AutoModelForCausalLM.from_pretrained(
        place,
        revision=revision,
        dtype=dtype,
        attn_implementation=attention.NAME,
        quantization_config=_quantization(backend.quantize, dtype),
        device_map={"": device},
    )


def _place(backend: Mistral, start: Start) -> tuple[str, str | None]:
    """Where the bare weights are."""
    if start.folder is None:
        return str(backend.weights), backend.revision
    if is_adapter(start.folder):
        base = base_of(start.folder)
        return base, backend.revision if base == backend.weights else None
    return str(start.folder), None


def _adapters(backend: Mistral, model: Any, start: Start, *, train: bool) -> Adapters | None:
    folder: Path | None = start.folder
    if folder is None or not is_adapter(folder):
        return new_adapters(model, backend.lora) if train and backend.lora is not None else None
    if not train:
        return read_adapters(model, folder)
    if backend.lora is None:
        raise ZkitError(f"{folder} is an adapter, but the stage that starts from it has no `lora` to train")
    if "lora" in start.changed:
        return stacked_adapters(model, folder, backend.lora)
    return continued_adapters(model, folder, backend.lora)


def _quantization(quantize: Quantize | None, dtype: torch.dtype) -> Any:
    if quantize is None:
        return None
    from transformers import BitsAndBytesConfig

    if quantize.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantize.kind,
        bnb_4bit_use_double_quant=quantize.double,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def _keep_differentiable(model: Any) -> None:
    """Keep 4-bit layers in the layout that has a backward pass.

    On a CPU with bfloat16 instructions, bitsandbytes repacks a layer at its first forward in
    evaluation mode; gradients no longer flow through it then, and nothing is raised.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _checkpoint_activations(model: Any) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _check_head(model: Any) -> None:
    """Refuse heads that do more than one matrix product: the fused head would be wrong."""
    head = model.get_output_embeddings()
    softcap, scale = getattr(model.config, "final_logit_softcapping", None), getattr(model.config, "logit_scale", None)
    if head is None or getattr(head, "bias", None) is not None or softcap or scale not in (None, 1, 1.0):
        name = type(model).__name__
        raise ZkitError(f"{name} ends in more than a plain linear head (a bias, a soft cap or a scale), which `mistral` does not offer")

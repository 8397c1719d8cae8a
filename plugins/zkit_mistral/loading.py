"""From the `[model]` table and what the stage starts from to a policy."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zephyr_kit import ZkitError
from zephyr_kit.protocols import Start
from zephyr_kit.remote_code import brings_code
from zephyr_kit.weights import looks_like_folder
from zkit_mistral import attention, float8, scratch
from zkit_mistral.activations import compute_again, forget_inputs
from zkit_mistral.adapters import Adapters, base_of, continued_adapters, is_adapter, new_adapters, read_adapters, stacked_adapters
from zkit_mistral.agreement import check_agreement
from zkit_mistral.compiled import check_compiled, compile_layers
from zkit_mistral.liger import rotated
from zkit_mistral.low_rank import add_in_one_pass
from zkit_mistral.opening import Origin
from zkit_mistral.pointwise import fuse
from zkit_mistral.policy import MistralPolicy, Scorer
from zkit_mistral.quiet import quiet
from zkit_mistral.reach import refusals, wants_liger
from zkit_mistral.rotary import use_rotation
from zkit_mistral.tokenizer import ChatTokenizer, open_tokenizer
from zkit_mistral.unread import spare_unread

if TYPE_CHECKING:
    from zkit_mistral.settings import Quantize, Settings


def tokenizer(settings: Settings, start: Start) -> ChatTokenizer:
    """The tokenizer that the stage before saved, with its template unless the stage sets another; or the model's own."""
    if start.folder is not None:
        left = Origin(str(start.folder), remote_code=settings.remote_code if brings_code(start.folder) else None)
        if start.changed.isdisjoint({"template", "system"}):
            return open_tokenizer(left, template="auto")
        return open_tokenizer(left, template=settings.template, system=settings.system)
    origin = Origin(str(scratch.learn_tokenizer(settings.scratch))) if settings.scratch is not None else _origin(settings)
    return open_tokenizer(origin, template=settings.template, system=settings.system)


def load(settings: Settings, device: torch.device, *, start: Start, train: bool) -> MistralPolicy:
    """The model with its adapters, on the device."""
    if refused := list(refusals(settings, start)):
        raise ZkitError("\n".join(refused))
    attention.register()
    torch.manual_seed(start.seed)
    chat = tokenizer(settings, start)
    with quiet():
        model = _weights(settings, device, start, chat)
        check_head(model)
        _keep_differentiable(model)
        _keep_one_arithmetic(model, device)
        forget_inputs(model)
        use_kernels(model, settings, device)
        check_agreement(model, settings.attention, tolerance=_tolerance(settings))
        adapters = adapters_of(settings, model, start, train=train)
        if train:
            prepare_for_training(model, settings, adapters)
            if settings.fp8 != "none":
                # No run comes here without a GPU, for `problems` refuses it.
                float8.convert(model, settings.fp8, emulate=device.type != "cuda")
            if settings.compile:
                compile_layers(model)
        elif adapters is None:
            model.requires_grad_(requires_grad=False)
        spare_unread(model, settings)
    offload = settings.activation_offload and device.type == "cuda"
    scorer = Scorer(model if adapters is None else adapters.peft, settings.attention, offload=offload, noise=settings.embedding_noise)
    if train and settings.compile:
        check_compiled(scorer, float8=settings.fp8 != "none")
    return MistralPolicy(scorer, adapters, chat, device)


def use_kernels(model: Any, settings: Settings, device: torch.device) -> None:
    """Put faster forwards in the place of the model's own where they say the same."""
    dtype = getattr(torch, settings.dtype)
    liger = wants_liger(settings, device)
    fuse(model, dtype, liger=liger)
    # Liger's rotates in place, and "selective" keeps what it would rotate.
    if liger and settings.activation_checkpointing != "selective":
        use_rotation(model, dtype, rotated)


def prepare_for_training(model: Any, settings: Settings, adapters: Adapters | None) -> None:
    """Let gradients reach what is trained, and keep what the settings say of the activations."""
    if adapters is None:
        model.requires_grad_(requires_grad=True)
    elif not settings.compile:  # which joins the passes by itself
        # What "selective" keeps must not be added into; and what a product is made of would be moved to the host twice.
        selective = settings.activation_checkpointing == "selective"
        add_in_one_pass(adapters.peft, in_place=not selective, make_again=not settings.activation_offload)
    if settings.activation_checkpointing != "none":
        compute_again(model, selective=settings.activation_checkpointing == "selective", kept=settings.layers_kept)


def max_length(settings: Settings, start: Start) -> int | None:
    """The number of positions that the model was made for."""
    if start.folder is None and settings.scratch is not None:
        return settings.scratch.context
    positions = getattr(origin_of(settings, start).config(), "max_position_embeddings", None)
    return None if positions is None else int(positions)


def _weights(settings: Settings, device: torch.device, start: Start, chat: ChatTokenizer) -> Any:
    dtype = getattr(torch, settings.dtype)
    if start.folder is None and settings.scratch is not None:
        from transformers import AutoModelForCausalLM

        config = scratch.mistral_config(chat.tokens, **scratch.shape_of(settings.scratch))
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME).to(device)
    return origin_of(settings, start).model(
        dtype=dtype,
        attn_implementation=attention.NAME,
        quantization_config=quantization(settings.quantize, dtype),
        device_map={"": device},
    )


def _origin(settings: Settings) -> Origin:
    return Origin(settings.place, settings.commit, settings.remote_code)


def origin_of(settings: Settings, start: Start) -> Origin:
    """Where the weights below all adapters are."""
    return Origin(*bare_weights(settings, start), settings.remote_code)


def bare_weights(settings: Settings, start: Start) -> tuple[str, str | None]:
    """Where the weights below all adapters are: a folder or a repository, and its revision."""
    if start.folder is None:
        return settings.place, settings.commit
    if is_adapter(start.folder):
        base = base_of(start.folder)
        if looks_like_folder(base) and not Path(base).is_dir():
            raise ZkitError(
                f"{start.folder}: is an adapter, and the model below it is not where it was: {base} (if it was moved, "
                "move it back, or write where it is under base_model_name_or_path in the adapter's adapter_config.json)"
            )
        if not looks_like_folder(base) and base != settings.weights:
            raise ZkitError(f"{start.folder}: is an adapter of {base}, which [model] does not name; nothing else is fetched")
        return base, settings.commit if base == settings.weights else None
    # In full, for peft writes it into the adapters that stand on it.
    return str(start.folder.absolute()), None


def adapters_of(settings: Settings, model: Any, start: Start, *, train: bool) -> Adapters | None:
    """The adapters that the stage trains, or reads, on the bare model; None for whole weights."""
    folder: Path | None = start.folder
    if folder is None or not is_adapter(folder):
        return new_adapters(model, settings.lora) if train and settings.lora is not None else None
    if not train:
        return read_adapters(model, folder)
    if settings.lora is None:
        raise ZkitError(f"{folder} is an adapter, but the stage that starts from it has no `lora` to train")
    if "lora" in start.changed:
        return stacked_adapters(model, folder, settings.lora)
    return continued_adapters(model, folder, settings.lora)


def quantization(quantize: Quantize | None, dtype: torch.dtype) -> Any:
    """The same as transformers takes it."""
    if quantize is None:
        return None
    from transformers import BitsAndBytesConfig

    facts = quantize.facts()
    if facts["bits"] == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=facts["kind"],
        bnb_4bit_use_double_quant=facts["double"],
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


def _keep_one_arithmetic(model: Any, device: torch.device) -> None:
    """Let 8-bit layers compute alike in training and in evaluation.

    On a CPU, bitsandbytes multiplies in floating point while training and in integers
    otherwise: the reference, scored in evaluation mode, would not be the model that training
    starts from.
    """
    if device.type != "cpu":
        return
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            module.train()
            module.train = partial(_stay, module)


def _stay(module: Any, mode: bool = True) -> Any:  # noqa: ARG001, FBT001, FBT002  torch's signature
    return module


def check_head(model: Any) -> None:
    """Refuse what the fused head leaves out, and what small logits, or a bias that is still zero, would not betray."""
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None or getattr(model.config, "final_logit_softcapping", None):
        name = type(model).__name__
        raise ZkitError(f"{name} ends in more than a plain linear head (a bias or a soft cap), which `mistral` does not offer")


def _tolerance(settings: Settings) -> float:
    """How far two orders of the same sums may lie apart, as a share of what they say."""
    if settings.quantize is not None and settings.quantize.bits == 8:
        return 0.3  # activations are rounded too
    return 0.15 if settings.dtype == "bfloat16" else 1e-3

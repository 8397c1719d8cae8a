"""From the `[model]` table and what the stage starts from to a policy, through unsloth."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from zkit_mistral.adapters import Adapters, in_type_of_model
from zkit_mistral.agreement import agrees
from zkit_mistral.loading import adapters_of, check_head, origin_of, quantization
from zkit_mistral.quiet import quiet
from zkit_mistral.reach import refusals

from zephyr_kit import ZkitError
from zephyr_kit.cache import cache_folder
from zephyr_kit.protocols import Start
from zkit_unsloth.policy import UnslothPolicy, UnslothScorer
from zkit_unsloth.reach import WHERE, problems

if TYPE_CHECKING:
    from zkit_unsloth.backend import Unsloth

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures, by their `model_type`, whose layers unsloth has written anew, and that are told the segments of a row."""
TOLERANCE = 0.15
"""How far a packed row may lie from whole ones, as a share of what they say: its attention may round to bfloat16 whatever `dtype` is."""


def load(unsloth: Unsloth, device: torch.device, *, start: Start) -> UnslothPolicy:
    """The model with its adapters, on the device, to be trained."""
    if refused := [*problems(device)[:1], *refusals(unsloth.mistral, start)]:
        raise ZkitError("\n".join(refused))
    chat = unsloth.mistral.tokenizer(start)
    with quiet(), redirect_stdout(sys.stderr):
        fast = _fast_language_model()
        model = _weights(fast, unsloth, device, start)
        _check(model, unsloth)
        torch.manual_seed(start.seed)
        adapters = adapters_of(unsloth.mistral, model, start, train=True)
        _prepare(fast, model, adapters, checkpointing=_checkpointing(unsloth))
    return UnslothPolicy(_scorer(unsloth, model if adapters is None else adapters.peft), adapters, chat, device)


def _fast_language_model() -> Any:
    """The loader of unsloth. It counts no downloads, and what it compiles is not left in the working folder."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder("unsloth")))
    try:
        # It would be imported before transformers, for trainers that are not used here; layers are replaced when a model is loaded.
        with warnings.catch_warnings(action="ignore"):
            from unsloth import FastLanguageModel
    except Exception as error:  # whatever it finds wrong with the machine
        raise ZkitError(f"{WHERE}it cannot be imported ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})") from error
    return FastLanguageModel


def _weights(fast: Any, unsloth: Unsloth, device: torch.device, start: Start) -> Any:
    origin, dtype = origin_of(unsloth.mistral, start), getattr(torch, unsloth.dtype)
    config = origin.config()
    if config.model_type not in FAMILIES:
        raise ZkitError(f'{WHERE}trains {", ".join(FAMILIES)}, and {origin.place} is of the type {config.model_type}: use = "mistral" may')
    model, _ = origin.read_by(
        partial(_told, fast.from_pretrained),
        max_seq_length=config.max_position_embeddings,
        dtype=dtype,
        device_map={"": device},
        use_gradient_checkpointing=_checkpointing(unsloth),
        # These weights, and not those of the same name that others have quantised; and these token ids.
        use_exact_model_name=True,
        fix_tokenizer=False,
        offload_embedding=False,
        **_precision(unsloth, dtype),
    )
    # Rows have no padding; saved, it would mark a token whose weights are zeroed when they are loaded again.
    model.config.pad_token_id = config.pad_token_id
    return model


def _told(from_pretrained: Any, place: str, **how: Any) -> Any:
    """What unsloth raises of a model, as of a tokenizer without a token for padding, in a line."""
    try:
        return from_pretrained(place, **how)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ZkitError(f"{WHERE}it cannot load {place} ({(str(error).splitlines() or [''])[0]})") from error


def _precision(unsloth: Unsloth, dtype: torch.dtype) -> dict[str, Any]:
    if unsloth.quantize is None:
        return {"load_in_4bit": False, "load_in_16bit": True}
    config = quantization(unsloth.quantize, dtype)
    # As unsloth has it; another type is for weights that are shared out over devices.
    config.bnb_4bit_quant_storage = torch.uint8
    return {"load_in_4bit": True, "quantization_config": config}


def _check(model: Any, unsloth: Unsloth) -> None:
    """Refuse what was loaded otherwise than asked, for unsloth goes on with what the machine offers; and what scores otherwise."""
    if str(model.dtype) != f"torch.{unsloth.dtype}":
        raise ZkitError(f'{WHERE}the model came in {model.dtype} instead of dtype = "{unsloth.dtype}", which this GPU may not have')
    if unsloth.quantize is not None and not getattr(model, "is_loaded_in_4bit", False):
        raise ZkitError(f"{WHERE}the model came in {model.dtype} instead of 4 bits; is bitsandbytes installed for this GPU?")
    check_head(model)
    if not agrees(_scorer(unsloth, model), tolerance=TOLERANCE, whole=_logits, share_prompts=False):
        raise ZkitError(f'{WHERE}packed rows of {type(model).__name__} do not score as its own logits do: use = "mistral" may train it')


def _scorer(unsloth: Unsloth, model: Any) -> UnslothScorer:
    return UnslothScorer(model, unsloth.attention)


def _logits(model: Any, rows: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=rows, use_cache=False).logits
    return logits


def _checkpointing(unsloth: Unsloth) -> bool | Literal["unsloth"]:
    return "unsloth" if unsloth.activation_offload else unsloth.activation_checkpointing == "block"


def _prepare(fast: Any, model: Any, adapters: Adapters | None, *, checkpointing: bool | Literal["unsloth"]) -> None:
    """Let gradients reach what is trained, and let unsloth's kernels compute the adapter, if it is one."""
    if adapters is None:
        model.requires_grad_(requires_grad=True)
    elif not adapters.under:
        fast.patch_peft_model(adapters.peft, use_gradient_checkpointing=checkpointing)
        in_type_of_model(adapters.peft)
    elif checkpointing:
        # The kernels know one adapter; two are added up by peft, and checkpointing wants an input with a gradient.
        model.enable_input_require_grads()
    fast.for_training(model if adapters is None else adapters.peft, use_gradient_checkpointing=checkpointing)

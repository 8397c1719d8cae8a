"""The model that a stage would train, made of tensors without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from zephyr_kit.protocols import Skeleton, Start
from zkit_mistral import attention, float8
from zkit_mistral.adapters import REFERENCE, Adapters, copy_frozen, earlier_lora, new_adapters, stack
from zkit_mistral.loading import prepare_for_training
from zkit_mistral.pointwise import fuse
from zkit_mistral.policy import MistralPolicy, Scorer
from zkit_mistral.quiet import quiet
from zkit_mistral.shapes import find_config
from zkit_mistral.stand_ins import quantise
from zkit_mistral.unread import spare_unread

if TYPE_CHECKING:
    from zkit_mistral.settings import Settings
    from zkit_mistral.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class _Continued(Adapters):
    """An adapter that is gone on with; its folder may not be there yet, so the reference is a copy of it."""

    def keep_reference(self) -> None:
        copy_frozen(self, REFERENCE)

    @property
    def reference(self) -> tuple[str, ...]:
        return (REFERENCE,)


def skeleton(settings: Settings, start: Start) -> Skeleton:
    """Raises when the shape of the model is not known on this machine."""
    attention.register()
    config, remark = find_config(settings)
    with quiet():
        model = _model(settings, config)
        mapped = quantise(model, settings.quantize, dtype=_dtype_of_files(config, settings)) if settings.quantize is not None else 0
        fuse(model, getattr(torch, settings.dtype))
        adapters = _adapters(settings, model, start)
        prepare_for_training(model, settings, adapters)
        spare_unread(model, settings)
    # It scores and writes nothing, so it needs no tokenizer.
    scorer = Scorer(model if adapters is None else adapters.peft, settings.attention)
    policy = MistralPolicy(scorer, adapters, cast("ChatTokenizer", None), torch.device("cpu"))
    offload = "what activation_offload moves to the host is counted on the device" if settings.activation_offload else ""
    remarks = (remark, offload, float8.remark(settings.fp8, compiled=settings.compile))
    return Skeleton(policy, int(config.vocab_size), mapped, "; ".join(filter(None, remarks)))


def _model(settings: Settings, config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings.dtype), attn_implementation=attention.NAME)


def _dtype_of_files(config: Any, settings: Settings) -> torch.dtype:
    found = getattr(config, "dtype", None) or settings.dtype
    return found if isinstance(found, torch.dtype) else getattr(torch, str(found))


def _adapters(settings: Settings, model: Any, start: Start) -> Adapters | None:
    """As `loading` makes them, with what the stages before would leave, or have left."""
    if settings.lora is None:
        return None
    earlier = earlier_lora(start)
    if earlier is None:
        return new_adapters(model, settings.lora)
    if "lora" in start.changed:
        return stack(model, settings.lora, earlier=earlier)
    return _Continued(new_adapters(model, settings.lora).peft)

"""The backend `unsloth`. Nothing here imports torch, transformers or unsloth before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from zkit_mistral.backend import Lora, Mistral, Quantize

from zephyr_kit.config import default_use
from zephyr_kit.protocols import Attention, Leaner, Policy, Skeleton, Start

if TYPE_CHECKING:
    import torch
    from zkit_mistral.tokenizer import ChatTokenizer

FORESEEN = "activations are counted as `mistral` keeps them, on the device"


@dataclass(frozen=True, kw_only=True)
class Unsloth:
    """A causal language model of transformers that unsloth trains; it is read as `mistral` reads it."""

    shares_prompts: ClassVar[bool] = False
    """unsloth's attention knows segments that see themselves, and no mask of ours."""

    weights: str
    """A folder in Hugging Face format, or a repository's name."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What the model computes in. Trained weights are kept and updated in float32 at least."""
    template: str = "auto"
    """Chat template: `zephyr`, `chatml`, a file ending in .jinja, or `auto`: the tokenizer's own, else Zephyr's."""
    system: str | None = None
    """System turn for dialogues that have none; becomes part of the template."""
    lora: Lora | None = None
    quantize: Quantize | None = None
    """The frozen base in 4 bits."""
    attention: Attention = default_use("auto")
    """What a trained model is read with, for replies and evaluations; unsloth trains with an attention of its own."""
    activation_checkpointing: Literal["none", "block"] = "none"
    """Keep a layer's input alone, and compute the rest again in the backward pass."""
    activation_offload: bool = False
    """Let the inputs that "block" keeps wait in the host's memory."""

    def __post_init__(self) -> None:
        if self.quantize is not None and self.quantize.bits == 8:
            raise ValueError("`quantize.bits` = 8: unsloth's kernels read 4 bits; take those, or `use` = \"mistral\"")
        if self.activation_offload and self.activation_checkpointing == "none":
            raise ValueError('`activation_offload` moves what "block" keeps; set `activation_checkpointing` = "block" as well')
        assert self.mistral, "has conditions of its own"

    @property
    def mistral(self) -> Mistral:
        """The same model as the backend `mistral` has it."""
        return Mistral(**{f.name: getattr(self, f.name) for f in fields(self)})

    def problems(self, device: torch.device, *, start: Start) -> Sequence[str]:
        from zkit_unsloth.reach import problems

        return [*problems(device), *self.mistral.problems(device, start=start)]

    def fingerprint(self) -> Mapping[str, Any]:
        return self.mistral.fingerprint()

    def scores_fingerprint(self, start: Start) -> Mapping[str, Any]:
        return self.mistral.scores_fingerprint(start)

    def max_length(self, start: Start) -> int | None:
        return self.mistral.max_length(start)

    def tokenizer(self, start: Start) -> ChatTokenizer:
        return self.mistral.tokenizer(start)

    def load(self, device: torch.device, *, start: Start, train: bool) -> Policy:
        if not train:
            return self.mistral.load(device, start=start, train=False)
        from zkit_unsloth.loading import load

        return load(self, device, start=start)

    def merge(self, folder: Path, *, start: Start, dtype: str | None, advance: Callable[[int], None]) -> None:
        self.mistral.merge(folder, start=start, dtype=dtype, advance=advance)

    def skeleton(self, start: Start) -> Skeleton:
        found = self.mistral.skeleton(start)
        return replace(found, remark="; ".join(filter(None, (found.remark, FORESEEN))))

    def leaner(self) -> Sequence[Leaner]:
        model, steps = self, list[Leaner]()
        for step in self.mistral.leaner():
            if step.value != '"selective"':
                model = replace(model, **{step.key: getattr(step.offer, step.key)})
                steps.append(replace(step, offer=model))
        return steps

    def miniature(self, folder: Path) -> Mistral:
        """Of `mistral`: a smoke run tries the pipeline, and on any machine."""
        return self.mistral.miniature(folder)

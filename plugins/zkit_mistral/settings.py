"""The keys of the `[model]` table. Nothing here imports torch or transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from zephyr_kit.config import default_use
from zephyr_kit.protocols import Attention, DataSource
from zephyr_kit.remote_code import read_remote_code
from zephyr_kit.weights import commit_of, place_of
from zkit_mistral.templates import NAMED

Positive = Annotated[int, Gt(0)]


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685), through peft."""

    rank: Positive = 16
    alpha: Annotated[float, Gt(0)] = 16
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers to adapt, or all linear ones but the head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv 2312.03732)."""
    dora: bool = False
    """Learn magnitude and direction apart (arXiv 2402.09353)."""


@dataclass(frozen=True)
class Quantize:
    """The frozen base in 4 or 8 bits, through bitsandbytes (QLoRA, arXiv 2305.14314)."""

    bits: Literal[4, 8] = 4
    kind: Literal["nf4", "fp4"] | None = None
    """The 4-bit type; nf4 unless said otherwise."""
    double: bool | None = None
    """Quantise the 4-bit constants too; so it is unless said otherwise."""

    def __post_init__(self) -> None:
        if self.bits == 8:
            for key, value in (("kind", self.kind), ("double", self.double)):
                if value is not None:
                    raise ValueError(f"`{key}` = {json.dumps(value)} is for 4 bits; leave it out with `bits` = 8")

    def facts(self) -> dict[str, Any]:
        """What is done to the weights, defaults included."""
        four_bit = {"kind": self.kind or "nf4", "double": self.double is not False}
        return {"bits": self.bits, **(four_bit if self.bits == 4 else {})}


@dataclass(frozen=True)
class Scratch:
    """A new model of Mistral's architecture with random weights, and a tokenizer learned from text."""

    text: tuple[DataSource, ...]
    """What the byte-pair encoding is learned from."""
    vocabulary: Annotated[int, Gt(259)] = 1024
    width: Positive = 256
    layers: Positive = 4
    heads: Positive = 4
    kv_heads: Positive = 2
    mlp_width: Positive = 512
    context: Positive = 512

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(f"width = {self.width} must divide by heads = {self.heads}, and heads by kv_heads = {self.kv_heads}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a causal language model of transformers is made from."""

    weights: str | None = None
    """A folder in Hugging Face format, or a repository's name."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    remote_code: str | None = None
    """Code that the model brings, to be run: its repository and the whole commit, as in owner/name@0123…; without it, none is."""
    scratch: Scratch | None = None
    """Make a new model instead of taking `weights`."""
    dtype: Literal["bfloat16", "float32", "float64"] = "bfloat16"
    """What the model computes in. Trained weights are kept and updated in float32 at least, unless the optimizer rounds at random."""
    template: str = "auto"
    """Chat template: `zephyr`, `chatml`, a file ending in .jinja, or `auto`: the tokenizer's own, else Zephyr's."""
    system: str | None = None
    """System turn for dialogues that have none; becomes part of the template."""
    lora: Lora | None = None
    quantize: Quantize | None = None
    attention: Attention = default_use("auto")
    activation_checkpointing: Literal["none", "block", "selective"] = "none"
    """What the backward pass computes again instead of keeping it: whole layers but for their input, or what is cheap in them."""
    layers_kept: Annotated[int, Ge(0)] = 0
    """So many layers keep everything all the same, the last ones, which are the first to be done with: where memory is left, for speed."""
    activation_offload: bool = False
    """Let what is kept for the backward pass wait in the host's memory; on a CUDA GPU."""
    kernels: Literal["auto", "liger", "torch"] = "auto"
    """Norms, activations and rotations: Liger's on a CUDA GPU where it is installed, unless they are compiled; else torch's."""
    compile: bool = False
    """Compile what lies between attention and attention with torch.compile: a minute at the start, for fewer passes over the tokens."""
    fp8: Literal["none", "tensorwise", "rowwise"] = "none"
    """Multiply in float8 while training whole weights, a scale for each tensor (faster) or row (closer); `compile` makes it pay."""
    embedding_noise: Annotated[float, Ge(0)] = 0.0
    """NEFTune: noise on the embeddings of what is trained on, its paper's alpha (arXiv 2310.05914); 5 is usual."""

    def __post_init__(self) -> None:
        read_remote_code(self.remote_code)
        if (self.weights is None) == (self.scratch is None):
            raise ValueError("takes either `weights` or `scratch`" + (", not both" if self.weights else ", and has neither"))
        if self.revision is not None and self.scratch is not None:
            raise ValueError(f'`revision` = "{self.revision}" is one of a repository\'s; a model from `scratch` has none')
        if self.quantize is not None and self.lora is None:
            raise ValueError("`quantize` freezes the weights, so it needs `lora` to have something to train")
        if self.quantize is not None and self.quantize.bits == 8 and self.lora is not None and self.lora.dora:
            raise ValueError("`lora.dora` needs the base's weights, which peft cannot read back from 8 bits; use 4 bits, or none")
        if self.quantize is not None and self.scratch is not None:
            raise ValueError("`quantize` needs `weights`: random ones are not worth keeping in 4 bits")
        self._check_activations()
        if self.compile:
            self._check_compile()
        if self.fp8 != "none":
            self._check_fp8()
        if self.template != "auto" and self.template not in NAMED and not self.template.endswith(".jinja"):
            known = ", ".join(map(json.dumps, ("auto", *NAMED)))
            raise ValueError(f'`template` = "{self.template}" should be one of {known}, or a file ending in .jinja')

    def _check_activations(self) -> None:
        if self.activation_offload and self.activation_checkpointing == "selective":
            raise ValueError('`activation_offload` cannot move what "selective" keeps; use `activation_checkpointing` = "block", or "none"')
        if self.layers_kept and self.activation_checkpointing == "none":
            raise ValueError('`layers_kept` is for what `activation_checkpointing` computes again; with "none" all layers are kept')

    def _check_compile(self) -> None:
        if self.activation_checkpointing == "selective":
            raise ValueError('`compile` cannot choose what "selective" keeps; use `activation_checkpointing` = "block", or "none"')
        if self.kernels == "liger":
            raise ValueError("`compile` cannot look into Liger's `kernels`; leave one of the two out")

    def _check_fp8(self) -> None:
        if self.lora is not None:
            raise ValueError('`fp8` is for training whole weights, and `lora` freezes them; leave `lora` out, or set `fp8` = "none"')
        if self.dtype != "bfloat16":
            raise ValueError(f'`fp8` rounds what is bfloat16; set `dtype` = "bfloat16" instead of "{self.dtype}", or `fp8` = "none"')

    @property
    def place(self) -> str:
        """`weights` as transformers takes them."""
        assert self.weights is not None, "a model from scratch has no place"
        return place_of(self.weights)

    @property
    def commit(self) -> str | None:
        """The revision of a repository that is loaded, and that the fingerprint holds."""
        return None if self.weights is None else commit_of(self.weights, self.revision)

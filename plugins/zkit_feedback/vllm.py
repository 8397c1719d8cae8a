"""The completer `vllm`: replies of a model that vLLM runs in this process. Nothing here imports it before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt, Interval

from zephyr_kit.config import plain
from zephyr_kit.fingerprint import file_fingerprint
from zephyr_kit.protocols import Bench, Failure, Reply, Request
from zephyr_kit.weights import place_of, weights_fingerprint, weights_problems

if TYPE_CHECKING:
    import torch

    from zkit_feedback.scripted import ScriptedCompleter

Positive = Annotated[int, Gt(0)]


@dataclass(frozen=True, kw_only=True)
class VllmCompleter:
    """Replies of a model that vLLM runs on the GPUs of this machine; loaded for them, and freed after."""

    weights: str
    """A folder in Hugging Face format, or a repository's name."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto` is what the weights are kept in."""
    template: str | None = None
    """Chat template, a file ending in .jinja; the tokenizer's own unless given."""
    tensor_parallel: Positive = 1
    """Over how many GPUs each layer is spread."""
    gpu_memory: Annotated[float, Interval(gt=0, le=1)] = 0.9
    """The share of a GPU's memory that it may take."""
    max_length: Positive | None = None
    """Tokens of a dialogue with its reply; as many as the model has positions unless given."""
    slice: Positive = 512
    """How many requests are handed over at once; their replies are kept when the last of them is written."""

    @property
    def place(self) -> str:
        """`weights` as vLLM takes them."""
        return place_of(self.weights)

    def complete(self, requests: Sequence[Request], bench: Bench) -> Iterator[tuple[int, Reply | Failure]]:
        if requests:
            from zkit_feedback.vllm_engine import write_replies

            yield from write_replies(self, requests)

    def fingerprint(self, bench: Bench) -> Mapping[str, Any]:
        template = file_fingerprint(Path(self.template)) if self.template else None
        weights = plain(weights_fingerprint(self.weights, self.revision))
        return {"use": "vllm", "weights": weights, "dtype": self.dtype, "template": template, "max_length": self.max_length}

    def problems(self, device: torch.device) -> Sequence[str]:
        found = []
        if find_spec("vllm") is None:
            found.append("vllm is not installed: pip install 'zephyr-kit[vllm]'")
        if device.type != "cuda":
            found.append(f'vllm needs a CUDA device, and this is {device}; `use = "model"` writes on any')
        if self.template is not None and not Path(self.template).exists():
            found.append(f"vllm: template: there is no file {Path(self.template).absolute()}")
        return [*found, *weights_problems(self.weights, self.revision)]

    def miniature(self, folder: Path) -> ScriptedCompleter:
        from zkit_feedback.scripted import ScriptedCompleter

        return ScriptedCompleter(instead_of=self.weights)

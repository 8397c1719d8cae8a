"""What is kept of a forward pass for the backward one: everything, or only what is dear to compute again; and where it waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from zephyr_kit import ZkitError

PRODUCTS = {
    "mm": (0, 1, 1),
    "addmm": (1, 2, 1),
    "linear": (0, 1, 0),
    "gemm_4bit": (0, 2, 0),
    "int8_mixed_scaled_mm": (0, 2, 0),
    "int8_scaled_mm": (0, 1, 0),
    "_scaled_mm": (0, 1, 1),
}
"""Matrix products by the name of torch's and bitsandbytes' operators: which argument is the input, which one is the weight (or its
shape), and by which dimension of that the result is as wide as it is."""
SMALLEST_MOVED = 1 << 20
"""Bytes; less is not worth a copy to the host and back."""


def compute_again(model: Any, *, selective: bool, kept: int = 0) -> None:
    """Keep a layer's input, and if `selective` its dearest results; compute the rest again in the backward pass.

    The last `kept` layers keep everything: they are done with when the first one is computed again.
    Random numbers are drawn again as they were, so that dropout hides the same.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, SavePolicy.of(model.config))
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)
    layers = getattr(model, model.base_model_prefix).layers
    if kept > len(layers):
        raise ZkitError(f"[model] layers_kept = {kept}: {type(model).__name__} has {len(layers)} layers")
    for layer in layers[len(layers) - kept :]:
        layer.gradient_checkpointing = False


@dataclass(frozen=True, slots=True)
class SavePolicy:
    """Which results are kept, by what a byte of them costs.

    A product of K inputs costs 2K operations a value, whatever its width, and attention more the
    longer the segment is; norms, rotations, activations and an adapter's way up cost a few. So
    attention is kept, and of the products those that are about as narrow as the layer's input.
    The feed-forward part's, three times as wide each, are computed again: they would take most of
    the memory. Its product back to the layer's width is neither kept nor computed again, for
    nothing in the layer comes after it.
    """

    widest: float
    """Width of the feed-forward part."""
    attention: bool = True

    @staticmethod
    def of(config: Any) -> SavePolicy:
        # Attention that drops out draws random numbers: were it skipped, all that is drawn after it would be others.
        return SavePolicy(getattr(config, "intermediate_size", None) or float("inf"), not getattr(config, "attention_dropout", 0.0))

    def __call__(self, context: Any, operator: Any, *args: Any, **_: Any) -> CheckpointPolicy:
        name = operator.name().rpartition("::")[2].partition(".")[0]
        if name in PRODUCTS:
            given, weight, dimension = PRODUCTS[name]
            kept = self._is_dear(args[given].shape[-1], getattr(args[weight], "shape", args[weight])[dimension])
        else:
            kept = self.attention and ("attention" in name or "flash" in name)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def _is_dear(self, num_inputs: int, num_outputs: int) -> bool:
        return num_outputs <= 2 * num_inputs and num_inputs < self.widest


def forget_inputs(model: nn.Module) -> None:
    """Let 8-bit layers not keep their input: with frozen weights its gradient does not need it.

    bitsandbytes holds it where neither checkpointing nor offloading reaches.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            module.register_forward_hook(_forget_input)


def _forget_input(layer: nn.Module, given: Any, result: Tensor) -> None:  # noqa: ARG001  torch's signature
    node: Any = result.grad_fn
    while node is not None and not node.name().startswith("MatMul8bit"):
        node = node.next_functions[0][0] if node.next_functions else None
    if node is not None:
        node.A, node.tensors = None, (None, None, None)


@contextmanager
def on_the_host(module: nn.Module, mover: Mover, *, smallest: int = SMALLEST_MOVED) -> Iterator[None]:
    """Let large activations wait on the host for the backward pass; parameters stay where they are."""
    stay = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def pack(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        own = tensor.untyped_storage().data_ptr() not in stay
        return (tensor.device, mover.away(tensor)) if own and tensor.nbytes >= smallest else tensor

    def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else mover.back(packed[1], packed[0])

    with saved_tensors_hooks(pack, unpack):
        yield


class Mover:
    """Copies that wait for each other."""

    @staticmethod
    def of(device: torch.device) -> Mover:
        """One for a whole training: torch keeps freed memory for the stream on which it was asked for."""
        return _OnStream(torch.cuda.Stream(device)) if device.type == "cuda" else Mover()  # type: ignore[no-untyped-call]

    def away(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)

    def back(self, kept: Tensor, device: torch.device) -> Tensor:
        return kept.to(device, non_blocking=True, copy=True)


@dataclass(frozen=True)
class _OnStream(Mover):
    """Copies on a stream beside the one that computes, in both directions, so that the one back comes after the one away."""

    stream: torch.cuda.Stream

    def away(self, tensor: Tensor) -> Tensor:
        self.stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self.stream):
            kept = super().away(tensor)
        # Its memory is not given to others before the copy is done.
        tensor.record_stream(self.stream)
        return kept

    def back(self, kept: Tensor, device: torch.device) -> Tensor:
        # Asked for well before the device comes to it, for the host is ahead.
        with torch.cuda.stream(self.stream):
            tensor = super().back(kept, device)
        current = torch.cuda.current_stream(device)
        current.wait_stream(self.stream)
        tensor.record_stream(current)
        return tensor

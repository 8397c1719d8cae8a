"""Bytes that tensors hold, by part, while code runs on tensors without data; the arithmetic it does, and the messages it sends."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any
from unittest import mock

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from zephyr_kit.shares import local

WEIGHTS, REFERENCE, MASTERS, GRADIENTS, OPTIMIZER = "weights", "reference", "master copies", "gradients", "optimizer"
ACTIVATIONS, HEAD = "activations", "head"
PARTS = (WEIGHTS, REFERENCE, MASTERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, HEAD)

aten, prim = torch.ops.aten, torch.ops.prim


class Footprint(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that is made within it, from the operation that makes it to its end.

    A storage belongs to the part of the moment at which it was made; while that is the
    activations, one with an axis as long as the vocabulary is the head's. What an operation
    uses inside and gives back before it returns is not seen.
    """

    def __init__(self, *, vocabulary: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.now: Counter[str] = Counter()
        self.peak: Mapping[str, int] = {}
        self.flops = self.operations = 0
        self.messages: Counter[str] = Counter()
        """How many collective operations of each kind."""
        self.message_bytes: Counter[str] = Counter()
        """The bytes of the whole of what they gather or reduce."""
        self._part = ACTIVATIONS
        self._blocks: dict[int, tuple[str, int, weakref.ref[UntypedStorage]]] = {}
        self._total = self._highest = 0

    @contextmanager
    def counted_as(self, part: str) -> Iterator[None]:
        """What is made within it belongs to this part."""
        before = self.switch(part)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, part: str) -> str:
        """From now on what is made belongs to this part; gives the one before."""
        before, self._part = self._part, part
        return before

    @contextmanager
    def resizes_seen(self) -> Iterator[None]:
        """Within it, storages that code makes longer or shorter in place are followed: `fully_shard` lets gathered weights go so."""
        resize = UntypedStorage.resize_

        def followed(storage: UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if id(storage) in self._blocks:
                part, before, reference = self._blocks[id(storage)]
                self._blocks[id(storage)] = (part, size, reference)
                self._count(part, size - before)
            return result

        with mock.patch.object(UntypedStorage, "resize_", followed):
            yield

    def begin(self) -> None:
        """Forget the peak, the arithmetic, the operations and the messages so far."""
        self.messages.clear()
        self.message_bytes.clear()
        self.flops, self.operations, self._highest, self.peak = 0, 0, self._total, dict(self.now)

    def move(self, tensor: Tensor, part: str) -> None:
        """What this tensor holds belongs to another part from now on."""
        key = id(local(tensor).untyped_storage())
        if key in self._blocks:
            old, size, reference = self._blocks[key]
            self.now[old] -= size
            self.now[part] += size
            self._blocks[key] = (part, size, reference)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then look at what it has made."""
        if func is prim.device.default:
            return args[0].fake_device if hasattr(args[0], "fake_device") else func(*args)
        if func is aten._local_scalar_dense.default:
            return _some_number(args[0])
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        self.flops += _flops(func, args, kwargs or {}, result)
        self.operations += not func.is_view
        if func.namespace == "c10d":
            name = str(func._overloadpacket).rpartition(".")[2].strip("_")
            self.messages[name] += 1
            self.message_bytes[name] += max((nbytes(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)), default=0)
        return result

    def _see(self, tensor: Tensor) -> None:
        tensor = local(tensor)
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._blocks:
            return
        wide = self._part == ACTIVATIONS and self.vocabulary and self.vocabulary in tensor.shape
        part, size = HEAD if wide else self._part, storage.nbytes()
        self._blocks[key] = (part, size, weakref.ref(storage, lambda _: self._end(key)))
        self._count(part, size)

    def _count(self, part: str, size: int) -> None:
        self.now[part] += size
        self._total += size
        if self._total > self._highest:
            self._highest, self.peak = self._total, dict(self.now)

    def _end(self, key: int) -> None:
        part, size, _ = self._blocks.pop(key)
        self._count(part, -size)


def _some_number(tensor: Tensor) -> float | int | bool:
    """For code that asks a tensor for its value, which is nowhere; no size that we know of depends on one."""
    return True if tensor.dtype is torch.bool else 1.0 if tensor.dtype.is_floating_point else 1


def _flops(func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> int:
    packet = func._overloadpacket if hasattr(func, "_overloadpacket") else None
    if packet is aten.addmm_:  # torch's registry knows it by its other form alone
        packet = aten.addmm
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(*(x.shape for x in args[:3]))) // _halves(args, kwargs, 4)  # type: ignore[no-untyped-call]
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return int(sdpa_backward_flop_count(*(x.shape for x in args[:4]))) // _halves(args, kwargs, 7)  # type: ignore[no-untyped-call]
    return 0


def _halves(args: Any, kwargs: Mapping[str, Any], place: int) -> int:
    """2 where every token sees only those before it."""
    return 2 if kwargs.get("is_causal", args[place] if len(args) > place else False) else 1


def nbytes(tensor: Tensor) -> int:
    """What the elements of a tensor take, or of this rank's share of it."""
    return prod(local(tensor).shape) * tensor.element_size()

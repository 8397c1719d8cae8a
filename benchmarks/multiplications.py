"""The matrix multiplications of a step: which ones there are, what they cost, and how fast torch does them alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zephyr_kit.batch import Batch, visible

FACTORS = {"mm": 0, "addmm": 1, "addmm_": 1}
"""The operations, and where their two factors stand among their arguments."""
REPEATS = 7
FORWARD, BACKWARD = 2, 5
"""Products of attention over visible pairs: QK' and PV; QK' again, then dV, dP, dQ and dK."""


class Layout(NamedTuple):
    """A matrix as it lies in memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def draw(self) -> Tensor:
        """Such a matrix of random numbers."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return torch.randn(last + 1).as_strided(self.shape, self.stride)


class Product(NamedTuple):
    """A matrix multiplication."""

    left: Layout
    right: Layout

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.left.shape[0] * self.left.shape[1] * self.right.shape[1]

    def seconds(self) -> float:
        """How long torch needs for it alone, in the median."""
        left, right = self.left.draw(), self.right.draw()
        result = torch.mm(left, right)
        times = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            torch.mm(left, right, out=result)
            times.append(time.perf_counter() - begun)
        return median(times)


class Recorder(TorchDispatchMode):
    """Counts the products that are executed within it, backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Note the operation if it is one of `FACTORS`, and let it be done."""
        first = FACTORS.get(operation.overloadpacket.__name__)
        if first is not None:
            left, right = (Layout(tuple(factor.shape), tuple(factor.stride())) for factor in args[first : first + 2])
            self.products[Product(left, right)] += 1
        return operation(*args, **(kwargs or {}))


def cost(products: Mapping[Product, int]) -> int:
    """Multiplications and additions of all of them."""
    return sum(count * product.operations for product, count in products.items())


def rate_alone(products: Mapping[Product, int]) -> float:
    """Operations a second when torch does these products and nothing else."""
    return cost(products) / sum(count * product.seconds() for product, count in products.items())


def cost_of_attention(batches: Iterable[Batch], config: Any) -> int:
    """Operations of all layers, forward and backward, over the pairs of tokens that see each other."""
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    pairs = sum(int(visible(batch).sum()) for batch in batches)
    return 2 * (FORWARD + BACKWARD) * pairs * width * config.num_hidden_layers

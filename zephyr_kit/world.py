"""The devices that take part in a run."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from zephyr_kit import ZkitError

Item = TypeVar("Item")



@dataclass(frozen=True, slots=True)
class World:
    """This process among all that train together."""

    rank: int = 0
    size: int = 1

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's share of the batches of a step."""
        return items[self.rank :: self.size]

    def total(self, value: Tensor) -> Tensor:
        """The sum of a value over all ranks."""
        if self.size > 1:
            dist.all_reduce(value)
        return value


def find_device(name: str = "auto") -> torch.device:
    """The device to train on: the named one, or the best of this machine."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ZkitError(f"--device {name}: torch knows no such device; try cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ZkitError(f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices on this machine")
    return device


def give_back_memory() -> None:
    """Return what models that are no longer there have held; torch and glibc keep it, and another could not have it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

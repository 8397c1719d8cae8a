"""Tensors whose rows are shared out over ranks, as `fully_shard` leaves them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

T = TypeVar("T", bound=Tensor)
NAMED = re.compile(r"(.*)@(\d+)/\d+")


@dataclass(frozen=True, slots=True)
class Share:
    """Which of a tensor's rows a rank has: `torch.chunk`'s part of that number."""

    first: int
    num_rows: int
    of: int
    """Rows of the whole."""
    is_copy: bool = False
    """Whether another rank has the same rows."""


    def named(self, name: str) -> str:
        """What the share is called in a file."""
        return f"{name}@{self.first}/{self.of}"


class Joined(Mapping[str, Tensor]):
    """Tensors of which some lie in shares, put together when they are asked for, and not kept."""

    def __init__(self, files: Mapping[str, Tensor]) -> None:
        self._shares: dict[str, list[tuple[int, Tensor]]] = {}
        for named, tensor in files.items():
            name, first = found.group(1, 2) if (found := NAMED.fullmatch(named)) else (named, "0")
            self._shares.setdefault(name, []).append((int(first), tensor))

    def __getitem__(self, name: str) -> Tensor:
        shares = [tensor for _, tensor in sorted(self._shares[name], key=lambda share: share[0])]
        return torch.cat(shares) if len(shares) > 1 else shares[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shares)

    def __len__(self) -> int:
        return len(self._shares)


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank; all ranks ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(tensor: Tensor) -> Share | None:
    """Which rows this rank has; None for a tensor that every rank has whole."""
    if not isinstance(tensor, DTensor):
        return None
    (dim,) = (number for number, placement in enumerate(tensor.placements) if isinstance(placement, Shard))
    size, rank = tensor.device_mesh.size(dim), tensor.device_mesh.get_local_rank(dim)
    rows = tensor.shape[0]
    chunk = -(-rows // size)
    first = min(rank * chunk, rows)
    others = [tensor.device_mesh.get_local_rank(number) for number in range(tensor.device_mesh.ndim) if number != dim]
    return Share(first, min(chunk, rows - first), rows, is_copy=any(others))


def like(value: Tensor, example: T) -> Tensor:
    """This rank's share of a whole tensor, shared out as the example is; the value itself if that is whole."""
    share = share_of(example)
    if share is None or not isinstance(example, DTensor) or value.dim() == 0:
        return value
    rows = value[share.first : share.first + share.num_rows].to(example.device)
    return DTensor.from_local(
        rows.contiguous(), example.device_mesh, example.placements, run_check=False, shape=value.shape, stride=value.stride()
    )


@torch.no_grad()
def put(value: Tensor, parameter: Tensor) -> None:
    """Copy a whole tensor into a parameter, or this rank's share of it into a shared one."""
    local(parameter).copy_(local(like(value, parameter)))

"""The attention that suits the device and the row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zephyr_kit.batch import Batch
from zephyr_kit.protocols import Attention
from zkit_attentions.flex import Flex
from zkit_attentions.segments import Segments
from zkit_attentions.two_pass import misfit
from zkit_attentions.varlen import Varlen

LONG = 3072
"""Tokens of a segment on average from which torch's own choice for single ones beats flash attention of all at once, on Hopper."""
HOPPER = 9
"""Its compute capability. Others were not measured."""


@dataclass(frozen=True)
class Auto:
    """On a CPU `segments`; on a CUDA GPU the fastest that can, by the measurements in benchmarks/results/kernels.json."""

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float, window: int | None, dropout: float
    ) -> Tensor:
        chosen = choose(query, batch, window=window, dropout=dropout)
        return chosen.attend(query, key, value, batch, scale=scale, window=window, dropout=dropout)

    def choice(self, device: torch.device) -> str:
        """What a bfloat16 model gets on `device`, and why."""
        if device.type != "cuda":
            return f"segments: the device is {device.type}"
        refused = Varlen().problems(device)
        if refused:
            return f"segments: {refused[0]}"
        long = f" and from {LONG:,} tokens each" if _is_hopper(device) else ""
        return f"varlen: the fastest in bfloat16; segments in float32{long}; flex to share beyond a window"


def choose(query: Tensor, batch: Batch, *, window: int | None, dropout: float) -> Attention:
    """The kernel; the same for all layers with this window."""
    if query.device.type != "cuda":
        return Segments()
    name = (__name__, query.dtype, query.shape[-1], window, dropout)
    if name not in batch.prepared:
        batch.prepared[name] = _choose(query, batch, window, dropout)
    found: Attention = batch.prepared[name]
    return found


def _choose(query: Tensor, batch: Batch, window: int | None, dropout: float) -> Attention:
    if Varlen().problems(query.device):
        return Segments()
    if misfit(query, batch, window=window, dropout=dropout):
        # What only the window keeps from varlen, flex can.
        flexible = not misfit(query, batch, window=None, dropout=dropout) and not Flex().problems(query.device)
        return Flex() if flexible else Segments()
    long = max(batch.parents, default=-1) < 0 and sum(batch.lengths) >= LONG * len(batch.lengths)
    if long and _is_hopper(query.device) and (window is None or max(batch.lengths) <= window):
        return Segments()
    return Varlen()


def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == HOPPER

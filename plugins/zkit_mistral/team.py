"""A row that several devices compute together, each a part of its tokens.

All but attention looks at one token at a time, so each device takes a part of the row through the
model. For attention they exchange: each gets all tokens of its share of the heads, runs whatever
kernel it has over the whole row, and hands every other its tokens back (Jacobs et al. 2023,
arXiv 2309.14509, section 3.1).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from zephyr_kit import ZkitError
from zephyr_kit.batch import Batch
from zephyr_kit.protocols import Attention


@dataclass(frozen=True)
class Team:
    """The devices, of which this is one."""

    group: dist.ProcessGroup

    @property
    def size(self) -> int:
        return self.group.size()

    def __deepcopy__(self, _: Any) -> Team:
        return self

    def check(self, config: Any) -> None:
        """Refuse a model whose heads cannot be divided."""
        heads = config.num_attention_heads
        of_keys = [getattr(config, name, None) for name in ("num_key_value_heads", "num_kv_heads")]
        shared = next(filter(None, of_keys), heads)
        common = math.gcd(heads, shared)
        if common % self.size:
            raise ZkitError(
                f"`train.context_parallel` = {self.size} does not divide the model's {heads} heads and {shared} heads of keys and values; "
                f"it may be {' or '.join(str(size) for size in range(1, common + 1) if common % size == 0)}"
            )

    def part(self, batch: Batch) -> Part:
        """This device's part of a row."""
        ends = [len(batch.tokens_T) * place // self.size for place in range(self.size + 1)]
        return Part(self.group, tuple(later - first for first, later in itertools.pairwise(ends)), ends[self.group.rank()])


@dataclass(frozen=True)
class Part:
    """A part of a row of T tokens: P of them, from `first` on.

    Models read no empty rows: where there are fewer tokens than devices, one that has none reads somebody else's, to no effect.
    """

    group: dist.ProcessGroup
    sizes: tuple[int, ...]
    """Of all parts."""
    first: int

    @property
    def size(self) -> int:
        """Tokens that are its own."""
        return self.sizes[self.group.rank()]

    @property
    def tokens(self) -> slice:
        """Those that it reads."""
        return slice(self.first, self.first + max(1, self.size))

    def sources(self, hidden_PD: Tensor, source_M: Tensor) -> Tensor:
        """Hidden states that precede this device's share of the targets, (Q, D), whoever has them."""
        places_M = self._even(source_M, -1)
        own_M = (places_M >= self.first) & (places_M < self.first + self.size)
        # What others have is the row of zeros after its own, so that the sum over devices is what one of them has.
        places_M = torch.where(own_M, places_M - self.first, len(hidden_PD))
        rows = torch.cat([hidden_PD, hidden_PD.new_zeros(1, hidden_PD.shape[1])]).index_select(0, places_M)
        return _Summed.apply(rows, self.group)  # type: ignore[no-any-return, no-untyped-call]

    def targets(self, target_M: Tensor) -> Tensor:
        """This device's share of the targets, (Q,): the same number for each, the last ones made up."""
        return self._even(target_M, 0).chunk(len(self.sizes))[self.group.rank()]

    def of_all(self, logp_Q: Tensor, num_targets: int) -> Tensor:
        """The scores of every target, (M,); the gradient goes to this device's own."""
        return _Gathered.apply(logp_Q, num_targets, self.group)  # type: ignore[no-any-return, no-untyped-call]

    def _even(self, values_M: Tensor, filling: int) -> Tensor:
        """As many for every device, one at the least."""
        size = len(self.sizes) * max(1, -(-len(values_M) // len(self.sizes)))
        return pad(values_M, (0, size - len(values_M)), value=filling)

    def to_heads(self, own_HPD: Tensor) -> Tensor:
        """All tokens of this device's share of the heads, (H / devices, T, D)."""
        num_heads, size = own_HPD.shape[0] // len(self.sizes), own_HPD.shape[2]
        received = [num_heads * tokens * size for tokens in self.sizes]
        flat = _exchange(own_HPD[:, : self.size].reshape(-1), [received[self.group.rank()]] * len(self.sizes), received, self.group)
        parts = zip(torch.split(flat, received), self.sizes, strict=True)
        return torch.cat([part.view(num_heads, tokens, size) for part, tokens in parts], 1)

    def to_tokens(self, heads_GTD: Tensor) -> Tensor:
        """All heads of this device's tokens, (H, P, D)."""
        num_heads, _, size = heads_GTD.shape
        parts = [part.reshape(-1) for part in torch.split(heads_GTD, list(self.sizes), 1)]
        received = [num_heads * self.size * size] * len(self.sizes)
        flat = _exchange(torch.cat(parts), [len(part) for part in parts], received, self.group)
        own_HPD = flat.view(num_heads * len(self.sizes), self.size, size)
        return own_HPD if self.size else pad(own_HPD, (0, 0, 0, 1))


@dataclass(frozen=True)
class Exchanged:
    """An attention over whole rows, each device's for its share of the heads."""

    attention: Attention
    part: Part

    def problems(self, device: torch.device) -> list[str]:
        """See `protocols.Attention`."""
        return list(self.attention.problems(device))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float, window: int | None, dropout: float
    ) -> Tensor:
        """See `protocols.Attention`; of this device's tokens."""
        query, key, value = (self.part.to_heads(own) for own in (query, key, value))
        attended = self.attention.attend(query, key, value, batch, scale=scale, window=window, dropout=dropout)
        return self.part.to_tokens(attended)


def _exchange(flat: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """Numbers for every device, from every device."""
    return _Exchange.apply(flat, sent, received, group)  # type: ignore[no-any-return, no-untyped-call]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = (sent, received), group
        return _sent(flat, sent, received, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        sent, received = ctx.sizes
        return _sent(gradient, received, sent, ctx.group), None, None, None


def _sent(flat: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    found = flat.new_empty(sum(received))
    dist.all_to_all_single(found, flat.contiguous(), received, sent, group)
    return found


class _Summed(torch.autograd.Function):
    """The sum over devices, each its part of the rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        size = [rows.numel() // group.size()] * group.size()
        return _sent(rows.reshape(-1), size, size, group).view(group.size(), -1, rows.shape[1]).sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradient, ctx.group), None


class _Gathered(torch.autograd.Function):
    """The parts of all devices, cut to a length; all make the same of them, so each has the gradient of its own at once."""

    @staticmethod
    def forward(ctx: Any, own_Q: Tensor, num_targets: int, group: dist.ProcessGroup) -> Tensor:
        ctx.size, ctx.group = len(own_Q), group
        return _gathered(own_Q, group)[:num_targets].clone()

    @staticmethod
    def backward(ctx: Any, gradient_M: Tensor) -> tuple[Tensor, None, None]:
        whole = pad(gradient_M, (0, ctx.size * ctx.group.size() - len(gradient_M)))
        return whole.chunk(ctx.group.size())[ctx.group.rank()], None, None


def _gathered(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    whole = own.new_empty(group.size() * len(own), *own.shape[1:])
    dist.all_gather(list(whole.chunk(group.size())), own.contiguous(), group=group)
    return whole

"""Laws of attention kernels."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from zephyr_kit.batch import Batch, Tree, lay_out, visible
from zephyr_kit.protocols import Attention
from zephyr_kit.testing.offer import OfferLaws
from zephyr_kit.testing.strategies import for_all, trees

LONG = 2
"""Draws of long rows."""


class AttentionLaws(OfferLaws):
    """What a kernel for packed rows must equal: softmax attention under `visible`, forward and backward."""

    subject = "attention"
    title = "Attention kernels"
    attention: Attention
    device: ClassVar[torch.device] = torch.device("cpu")
    dtype: ClassVar[torch.dtype] = torch.float32
    tolerance: ClassVar[float] = 2e-5
    heads: ClassVar[tuple[int, int]] = (4, 2)
    """Query heads, key-value heads."""
    size: ClassVar[int] = 8
    window: ClassVar[int | None] = None

    cases: ClassVar[int] = 10
    """Draws on which each law is tried."""

    def test_equals_its_definition_on_repeated_prompts(self) -> None:
        """On rows of plain segments it is softmax attention under `visible`, forward and backward.

        Without it, examples see each other, or not themselves, and the model that comes out is nobody's.
        """
        for_all(trees(2, prompt=0), lambda drawn: self._compare(lay_out(drawn, share_prompts=False)), cases=self.cases)

    def test_equals_its_definition_on_shared_prompts(self) -> None:
        """A completion sees the whole of its own prompt, which is written once, and nothing of the other completions.

        Without it, a pair is judged by what its other half says.
        """
        for_all(trees(3, prompt=0), lambda drawn: self._compare(lay_out(drawn)), cases=self.cases)

    def test_equals_its_definition_on_long_rows(self) -> None:
        """Also where segments fill several blocks of a kernel, and end within one.

        Without it, short examples are right and long ones wrong, which no loss curve shows.
        """
        for_all(trees(2, count=(2, 4), longest=300), lambda drawn: self._compare(lay_out(drawn)), cases=LONG, shrink=False)

    def test_equals_its_definition_on_one_token(self) -> None:
        """Also on a row of one token, the smallest there is.

        Without it, a rank that has no examples left fails, and takes the others with it.
        """
        one = np.array([3], np.int32)
        self._compare(lay_out([Tree(one[:0], (one,), (np.ones(1, np.bool_),))]))

    def test_has_no_problems_where_it_runs(self) -> None:
        """`problems` is empty on the device that these laws are tried on.

        Without it, the preflight refuses presets that would have run.
        """
        assert not self.attention.problems(self.device), self.attention.problems(self.device)

    def _compare(self, batch: Batch) -> None:
        batch = batch.to(self.device)
        mine, theirs = self._run(batch, kernel=True), self._run(batch, kernel=False)
        for one, other in zip(mine, theirs, strict=True):
            self.same(one.double(), other, rtol=self.tolerance, atol=self.tolerance)

    def _run(self, batch: Batch, *, kernel: bool) -> list[Tensor]:
        """The output, and the gradient of a random projection of it by query, key and value; of the definition in float64."""
        generator = torch.Generator().manual_seed(0)
        shapes = [(heads, len(batch.tokens_T), self.size) for heads in (self.heads[0], self.heads[1], self.heads[1])]
        drawn = [torch.randn(shape, generator=generator).to(self.device, self.dtype) for shape in (*shapes, shapes[0])]
        weight, query, key, value = (x if kernel else x.double() for x in (drawn[3], *drawn[:3]))
        for given in (query, key, value):
            given.requires_grad_()
        scale = self.size**-0.5
        output = (
            self.attention.attend(query, key, value, batch, scale=scale, window=self.window, dropout=0.0)
            if kernel
            else self._definition(query, key, value, batch, scale)
        )
        (output * weight).sum().backward()  # type: ignore[no-untyped-call]
        return [output.detach(), *(x.grad for x in (query, key, value) if x.grad is not None)]

    def _definition(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, scale: float) -> Tensor:
        groups = self.heads[0] // self.heads[1]
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        scores = (query @ key.transpose(1, 2) * scale).masked_fill(~visible(batch, window=self.window), float("-inf"))
        return scores.softmax(-1) @ value

"""Laws of attention kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from zephyr_kit.batch import Batch, Tree, lay_out, visible
from zephyr_kit.protocols import Attention
from zephyr_kit.testing.offer import OfferLaws
from zephyr_kit.testing.strategies import SEEDS, for_all, trees

SCALES = (1.0, 0.5, 2.0)
"""Of the usual one."""
LARGE = 40.0
"""By how much queries are larger where scores are to be, and differences may be."""
OTHER = "its output, or a gradient, is not that of softmax attention under `visible`"


@dataclass(frozen=True)
class Way:
    """How a row is attended to, and what the numbers are."""

    window: int | None = None
    scale: float = 1.0
    seed: int = 0
    factor: float = 1.0
    """By how much queries are larger than usual."""


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
    windows: ClassVar[tuple[int | None, ...]] = (None, 2, 5)
    cases: ClassVar[int] = 10
    """Draws of rows, windows, scales and numbers on which each law is tried."""
    long_cases: ClassVar[int] = 3
    """Of long rows."""

    def test_equals_its_definition_on_repeated_prompts(self) -> None:
        """On rows of plain segments it is softmax attention under `visible`, forward and backward, in any window and scale.

        Without it, examples see each other, or not themselves, and the model that comes out is nobody's.
        """
        self._for_rows(trees(2, prompt=0), share_prompts=False)

    def test_equals_its_definition_on_shared_prompts(self) -> None:
        """A completion sees the whole of its own prompt, which is written once, and nothing of the other completions.

        Without it, a pair is judged by what its other half says.
        """
        self._for_rows(trees(3, prompt=0))

    def test_equals_its_definition_on_long_rows(self) -> None:
        """Also where segments fill several blocks of a kernel, and end within one.

        Without it, short examples are right and long ones wrong, which no loss curve shows.
        """
        self._for_rows(trees(2, count=(2, 4), shortest=130, longest=300), cases=self.long_cases, shrink=False)

    def test_survives_large_scores(self) -> None:
        """Also where a query and a key are so alike that the exponential of their product is no number.

        Without it, training ends in NaN, weeks after the kernel was chosen.
        """
        self._for_rows(trees(2, prompt=0), factor=LARGE, loosely=LARGE)

    def test_equals_its_definition_on_one_token(self) -> None:
        """Also on a row of one token, the smallest there is.

        Without it, a rank that has no examples left fails, and takes the others with it.
        """
        one = np.array([3], np.int32)
        self._compare(lay_out([Tree(one[:0], (one,), (np.ones(1, np.bool_),))]), Way())

    def test_has_no_problems_where_it_runs(self) -> None:
        """`problems` is empty on the device that these laws are tried on.

        Without it, the preflight refuses presets that would have run.
        """
        assert not self.attention.problems(self.device), self.attention.problems(self.device)

    def _for_rows(
        self,
        rows: SearchStrategy[list[Tree]],
        *,
        share_prompts: bool = True,
        factor: float = 1.0,
        loosely: float = 1.0,
        cases: int | None = None,
        shrink: bool = True,
    ) -> None:
        ways = st.builds(Way, st.sampled_from(self.windows), st.sampled_from(SCALES), SEEDS, st.just(factor))

        def holds(drawn: tuple[list[Tree], Way]) -> None:
            self._compare(lay_out(drawn[0], share_prompts=share_prompts), drawn[1], self.tolerance * loosely)

        for_all(st.tuples(rows, ways), holds, cases=cases or self.cases, shrink=shrink)

    def _compare(self, batch: Batch, way: Way, tolerance: float | None = None) -> None:
        batch, most = batch.to(self.device), tolerance or self.tolerance
        for one, other in zip(self._run(batch, way, kernel=True), self._run(batch, way, kernel=False), strict=True):
            self.same(one.double(), other, rtol=most, atol=most, told=OTHER)

    def _run(self, batch: Batch, way: Way, *, kernel: bool) -> list[Tensor]:
        """The output, and the gradient of a random projection of it by query, key and value; of the definition in float64."""
        generator = torch.Generator().manual_seed(way.seed)
        shapes = [(heads, len(batch.tokens_T), self.size) for heads in (self.heads[0], self.heads[1], self.heads[1])]
        drawn = [torch.randn(shape, generator=generator) for shape in (*shapes, shapes[0])]
        drawn[0] *= way.factor
        placed = [x.to(self.device, self.dtype) for x in drawn]
        query, key, value, weight = (x if kernel else x.double() for x in placed)
        for given in (query, key, value):
            given.requires_grad_()
        scale = way.scale * self.size**-0.5
        output = (
            self.attention.attend(query, key, value, batch, scale=scale, window=way.window, dropout=0.0)
            if kernel
            else self._definition(query, key, value, batch, scale, way.window)
        )
        (output * weight).sum().backward()  # type: ignore[no-untyped-call]
        return [output.detach(), *(x.grad for x in (query, key, value) if x.grad is not None)]

    def _definition(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, scale: float, window: int | None) -> Tensor:
        groups = self.heads[0] // self.heads[1]
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        scores = (query @ key.transpose(1, 2) * scale).masked_fill(~visible(batch, window=window), float("-inf"))
        return scores.softmax(-1) @ value

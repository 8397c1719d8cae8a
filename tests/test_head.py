"""The fused head: projection, log-softmax and gather."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from zkit_mistral import head
from zkit_mistral.head import target_logp


def plainly(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(-1).gather(-1, target[:, None]).squeeze(-1)


def hold(monkeypatch: pytest.MonkeyPatch, max_logits: int, num_chunks: int) -> None:
    monkeypatch.setitem(head.CHUNK, "cpu", max_logits)
    monkeypatch.setattr(head, "BUFFER", max_logits * num_chunks)


def head_inputs(
    rows: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rows * 1000 + vocabulary)
    hidden, weight = (scale * torch.randn(size, width, generator=draw, dtype=torch.float64) for size in (rows, vocabulary))
    target = torch.randint(vocabulary, (rows,), generator=draw)
    upstream = torch.randn(rows, generator=draw, dtype=torch.float64)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target, upstream


@pytest.mark.parametrize("num_chunks", [1, 2, 5])
@pytest.mark.parametrize("max_logits", [1, 50, 1 << 24])
@pytest.mark.parametrize(("rows", "width", "vocabulary"), [(1, 1, 2), (7, 5, 13), (16, 8, 16), (33, 3, 7), (5, 64, 1)])
def test_the_head_is_log_softmax(
    monkeypatch: pytest.MonkeyPatch, rows: int, width: int, vocabulary: int, max_logits: int, num_chunks: int
) -> None:
    hold(monkeypatch, max_logits, num_chunks)
    hidden, weight, target, upstream = head_inputs(rows, width, vocabulary)
    found, expected = target_logp(hidden, weight, target), plainly(hidden, weight, target)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(found, (hidden, weight), upstream)
    theirs = torch.autograd.grad(expected, (hidden, weight), upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_the_head_has_the_gradient_of_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, 20, 2)
    hidden, weight, target, _ = head_inputs(6, 4, 9)
    assert torch.autograd.gradcheck(lambda h, w: target_logp(h, w, target), (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_in_shorter_types(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    hold(monkeypatch, 300, 2)
    hidden, weight, target, upstream = head_inputs(29, 16, 101, dtype, scale=0.5)
    found = target_logp(hidden, weight, target)
    assert found.dtype == torch.float32
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = plainly(*wide, target)
    found.backward(upstream.float())
    expected.backward(upstream)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found.double(), expected, **tolerance)
    for short, full in zip((hidden, weight), wide, strict=True):
        assert short.grad is not None
        assert short.grad.dtype == dtype
        torch.testing.assert_close(short.grad.double(), full.grad, **tolerance)


def test_the_head_survives_extreme_logits() -> None:
    hidden, weight, target, _ = head_inputs(9, 4, 11, torch.float32, scale=100.0)
    found = target_logp(hidden, weight, target)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_a_frozen_head_gets_no_gradient_and_costs_none() -> None:
    hidden, weight, target, _ = head_inputs(5, 4, 11)
    target_logp(hidden, weight.detach(), target).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    alone = target_logp(hidden.detach(), weight, target)
    alone.sum().backward()
    assert weight.grad is not None


def test_no_targets_are_no_scores() -> None:
    hidden, weight, _, _ = head_inputs(1, 4, 11, torch.bfloat16)
    found = target_logp(hidden[:0], weight, torch.empty(0, dtype=torch.long))
    assert found.shape == (0,)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert not hidden.grad.any()  # type: ignore[union-attr]


def test_a_second_backward_pass_says_the_same() -> None:
    """The first one has used up what was left in the buffer."""
    hidden, weight, target, upstream = head_inputs(9, 4, 11)
    found = target_logp(hidden, weight, target)
    once = torch.autograd.grad(found, (hidden, weight), upstream, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(found, (hidden, weight), upstream), once, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("margin", [3.0, 6.0, 9.0])
def test_what_is_almost_certain_has_a_gradient_in_bfloat16(*, frozen: bool, margin: float) -> None:
    """1 - p is lost when p is rounded to a short type first; it is known from log p."""
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(40, 64, generator=draw).bfloat16()
    target = torch.arange(20)
    hidden = (margin * weight[:20].float() / weight[:20].float().square().sum(-1, keepdim=True) * 2).bfloat16().requires_grad_()
    weight.requires_grad_(not frozen)
    target_logp(hidden, weight, target).sum().backward()
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    plainly(*wide, target).sum().backward()
    pairs = [(hidden, wide[0])] + ([] if frozen else [(weight, wide[1])])
    for short, full in pairs:
        error = (short.grad.double() - full.grad).norm() / full.grad.norm()
        assert error < 0.06, error

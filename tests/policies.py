"""Tiny policies of the backend `mistral`, and what tests do with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import random_trees
from torch import Tensor, nn
from zkit_attentions.segments import Segments
from zkit_mistral.backend import Lora, Mistral, Quantize
from zkit_mistral.policy import MistralPolicy

from zephyr_kit.batch import Batch, lay_out
from zephyr_kit.protocols import Start

CPU = torch.device("cpu")
PAIRS = random_trees(4, completions=2, longest=9)


def backend(weights: Path, **options: Any) -> Mistral:
    return Mistral(**{"weights": str(weights), "dtype": "float32", "template": "zephyr", "attention": Segments(), **options})


def load(weights: Path, start: Start | None = None, *, train: bool = True, **options: Any) -> MistralPolicy:
    return backend(weights, **options).load(CPU, start=start or Start(), train=train)


def trained(policy: MistralPolicy) -> dict[str, nn.Parameter]:
    return {name: p for name, p in policy.module.named_parameters() if p.requires_grad}


def shake(policy: MistralPolicy, size: float = 0.05, seed: int = 5) -> None:
    """Move what is trained off its start, so that an adapter says something."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in trained(policy).values():
        parameter.data.add_(size * torch.randn(parameter.shape, generator=draw).to(parameter.dtype))


@torch.no_grad()
def scores(policy: MistralPolicy, trees: Any = PAIRS) -> Tensor:
    policy.module.eval()
    return policy.score(lay_out(trees))


def gradients(policy: MistralPolicy, batch: Batch, seed: int = 3) -> dict[str, Tensor]:
    policy.module.train()
    torch.manual_seed(seed)
    policy.score(batch).sum().backward()
    found = {name: p.grad.detach().clone() for name, p in trained(policy).items() if p.grad is not None}
    policy.module.zero_grad()
    return found


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], **tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def first_stage(weights: Path, folder: Path, **lora: Any) -> tuple[Tensor, Path]:
    """An adapter that SFT left, and how the model scores with it."""
    policy = load(weights, lora=Lora(rank=4, alpha=8, **lora))
    shake(policy)
    policy.save(folder)
    return scores(policy), folder


def check_reference(policy: MistralPolicy, expected: Tensor) -> None:
    """The reference is what the stage found, whatever is trained; and all is as it was after it."""
    policy.keep_reference()
    flags = {name: p.requires_grad for name, p in policy.module.named_parameters()}
    values = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    torch.testing.assert_close(scores(policy), expected, rtol=1e-6, atol=1e-6)
    shake(policy, seed=9)
    moved = scores(policy)
    assert (moved - expected).abs().max() > 1e-2
    for training in (True, False):
        policy.module.train(training)
        with torch.no_grad(), policy.reference():
            torch.testing.assert_close(policy.score(lay_out(PAIRS)), expected, rtol=1e-6, atol=1e-6)
        assert policy.module.training is training
        with explosion(), policy.reference():
            explode()
        assert policy.module.training is training
        assert all(module.training is training for module in policy.module.modules())
    assert torch.equal(scores(policy), moved)
    assert flags == {name: p.requires_grad for name, p in policy.module.named_parameters()}
    for name, parameter in policy.module.named_parameters():
        assert flags[name] or torch.equal(parameter, values[name]), f"{name} is frozen"
    reached = gradients(policy, lay_out(PAIRS))
    assert reached.keys() == {name for name, flag in flags.items() if flag}


def quantised(weights: Path, quantize: Quantize, **options: Any) -> MistralPolicy:
    return load(weights, dtype="bfloat16", lora=Lora(rank=4, alpha=8), quantize=quantize, **options)


def explode() -> None:
    raise RuntimeError("in the middle")


@contextmanager
def explosion() -> Iterator[None]:
    with pytest.raises(RuntimeError, match="in the middle"):
        yield

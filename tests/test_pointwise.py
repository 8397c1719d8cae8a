"""RMSNorm and SwiGLU with backward passes of their own, against plain torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.mistral import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm
from zkit_mistral.pointwise import fuse

SHAPE = (1, 7, 12)


def mlp(activation: str) -> MistralMLP:
    return MistralMLP(MistralConfig(hidden_size=12, intermediate_size=20, hidden_act=activation))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mistral-norm": lambda: MistralRMSNorm(12),
    "gemma-norm": lambda: GemmaRMSNorm(12),
    "mlp": lambda: mlp("silu"),
}


def draw(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64).to(dtype)


def results(module: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    """Output, gradient of the input, gradients of the parameters."""
    x = draw(SHAPE, dtype).requires_grad_()
    output = module(x)
    output.backward(draw((*SHAPE, 1), dtype)[..., 0])
    return [output.detach(), x.grad, *(p.grad for p in module.parameters())]


def made(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    module = MODULES[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.to(dtype)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_says_what_the_module_says(name: str, dtype: torch.dtype, tolerance: float) -> None:
    theirs = made(name, dtype)
    ours = copy.deepcopy(theirs)
    fuse(ours, dtype)
    assert "forward" in vars(ours)
    for one, other in zip(results(ours, dtype), results(theirs, dtype), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MODULES)
def test_has_the_gradient_of_its_value(name: str) -> None:
    module = made(name, torch.float64)
    fuse(module, torch.float64)
    x = draw(SHAPE, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *module.parameters()))


def test_keeps_less_for_the_backward_pass() -> None:
    def kept(module: nn.Module) -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t):
            module(draw(SHAPE, torch.float32).requires_grad_())
        return sum(sizes.values())

    for name in MODULES:
        theirs = made(name, torch.float32)
        ours = copy.deepcopy(theirs)
        fuse(ours, torch.float32)
        assert kept(ours) < kept(theirs), name


class OddRMSNorm(MistralRMSNorm):
    def forward(self, hidden_states: Any) -> Any:
        return 3 * super().forward(hidden_states)


@pytest.mark.parametrize("module", [OddRMSNorm(12), mlp("gelu")])
def test_leaves_another_kind_alone(module: nn.Module) -> None:
    fuse(module, torch.float32)
    assert "forward" not in vars(module)

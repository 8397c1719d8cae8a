"""Layers compiled with torch.compile say what they say without it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from random_data import random_trees
from tiny import write_model
from zkit_attentions.segments import Segments
from zkit_mistral.backend import Lora, Mistral, Quantize

from zephyr_kit import ZkitError
from zephyr_kit.batch import lay_out
from zephyr_kit.protocols import Policy, Start

CPU = torch.device("cpu")


def gradients(policy: Policy, seed: int) -> list[torch.Tensor]:
    policy.module.zero_grad()
    torch.manual_seed(seed)
    logp_M = policy.score(lay_out(random_trees(3, 2, seed=seed, longest=20)))
    logp_M.sum().backward()
    return [logp_M.detach(), *(p.grad.clone() for p in policy.module.parameters() if p.grad is not None)]


compiles = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute of a Tensor"),
]


def marked(test):
    for mark in compiles:
        test = mark(test)
    return test


@marked
@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_scores_and_gradients_are_the_same_for_rows_of_any_length(tmp_path: Path, lora: Lora | None) -> None:
    folder = write_model(tmp_path, dtype=torch.float32, num_hidden_layers=2)
    models = (Mistral(weights=str(folder), dtype="float32", lora=lora, attention=Segments(), compile=way) for way in (False, True))
    plain, compiled = (model.load(CPU, start=Start(seed=1), train=True) for model in models)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for seed in range(4):
        for one, other in zip(gradients(compiled, seed), gradients(plain, seed), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert seed < 2 or graphs == before, "no length is compiled for itself"
        before = graphs
    assert before > 0


@marked
def test_adapters_on_a_quantised_base_learn_the_same_and_step_aside_for_the_reference(tmp_path: Path) -> None:
    """What is compiled with an adapter is not used without it."""
    folder = write_model(tmp_path, dtype=torch.float32, hidden_size=64, head_dim=16, intermediate_size=128)
    settings = {"weights": str(folder), "dtype": "float32", "lora": Lora(rank=2), "quantize": Quantize(), "attention": Segments()}
    plain, compiled = (Mistral(**settings, compile=way).load(CPU, start=Start(seed=1), train=True) for way in (False, True))
    for policy in (plain, compiled):
        torch.manual_seed(0)
        for parameter in policy.module.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.1)
    for seed in range(3):
        for one, other in zip(gradients(compiled, seed), gradients(plain, seed), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)
        batch = lay_out(random_trees(3, 2, seed=seed, longest=20))
        with torch.no_grad(), compiled.reference(), plain.reference():
            torch.testing.assert_close(compiled.score(batch), plain.score(batch), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, dropout=0.1)], ids=["full", "lora"])
def test_what_learns_otherwise_when_it_is_compiled_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Lora | None) -> None:
    """As if the compiler had lost the gradient on its way through a layer."""
    folder = write_model(tmp_path, dtype=torch.float32, num_hidden_layers=2)
    model = Mistral(weights=str(folder), dtype="float32", lora=lora, attention=Segments(), compile=True)

    def compiled(layer: torch.nn.Module, *, dynamic: bool, through: Callable[..., Any]) -> None:
        layer._compiled_call_impl = lambda hidden, *rest, **options: layer._call_impl(through(hidden), *rest, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compiled, through=torch.clone))
    model.load(CPU, start=Start(seed=1), train=True)
    for wrong in (lambda hidden: hidden + (hidden.detach() - hidden) / 2, lambda hidden: hidden * torch.nan):
        monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compiled, through=wrong))
        with pytest.raises(ZkitError, match=r"\[model\] compile: what torch .* away from what it is without; leave `compile` out"):
            model.load(CPU, start=Start(seed=1), train=True)


def test_what_selective_keeps_is_not_chosen_by_a_compiler() -> None:
    with pytest.raises(ValueError, match="compile"):
        Mistral(weights="somewhere", compile=True, activation_checkpointing="selective", attention=Segments())

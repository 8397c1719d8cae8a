"""Quantised bases."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import CPU, PAIRS, assert_close, gradients, load, quantised, scores, shake
from tiny import ListCorpus, random_trees, write_model
from torch import Tensor
from zkit_mistral.backend import Lora, Quantize
from zkit_mistral.policy import MistralPolicy
from zkit_optimizers.adamw import AdamW, AdamW8bit
from zkit_sft.objective import Sft

from zephyr_kit.batch import lay_out
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed
from zephyr_kit.protocols import Start
from zephyr_kit.world import World


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


QUANTISED = [Quantize(), Quantize(double=False), Quantize(kind="fp4"), Quantize(bits=8)]


@pytest.mark.parametrize("quantize", QUANTISED, ids=["nf4-double", "nf4", "fp4", "8-bit"])
def test_gradients_flow_after_a_pass_in_evaluation_mode(wide: Path, quantize: Quantize) -> None:
    policy, batch = quantised(wide, quantize), lay_out(PAIRS)
    shake(policy)
    first = gradients(policy, batch)
    assert all(value.any() for value in first.values())
    before = scores(policy)
    with torch.no_grad(), policy.reference():
        policy.score(batch)
    assert_close(gradients(policy, batch), first, rtol=0, atol=0)
    assert torch.equal(scores(policy), before)


@pytest.mark.parametrize("quantize", QUANTISED, ids=["nf4-double", "nf4", "fp4", "8-bit"])
@pytest.mark.parametrize("optimizer", [AdamW(), AdamW8bit()], ids=["adamw", "adamw-8-bit"])
def test_a_quantised_base_learns(wide: Path, quantize: Quantize, optimizer: AdamW) -> None:
    import bitsandbytes

    policy = quantised(wide, quantize)
    kinds = [module for module in policy.module.modules() if isinstance(module, (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt))]
    assert len(kinds) == 2 * 7, "every linear layer but the head"
    frozen = {name: raw(p) for name, p in policy.module.named_parameters() if not p.requires_grad}
    losses = five_steps(policy, optimizer)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05
    for name, parameter in policy.module.named_parameters():
        assert parameter.requires_grad or torch.equal(raw(parameter), frozen[name])


@pytest.mark.parametrize("quantize", QUANTISED, ids=["nf4-double", "nf4", "fp4", "8-bit"])
def test_the_reference_is_scored_as_training_scores(wide: Path, quantize: Quantize) -> None:
    """Else DPO begins with a margin that nobody trained."""
    policy, batch = quantised(wide, quantize), lay_out(PAIRS)
    policy.module.train()
    training = policy.score(batch).detach()
    torch.testing.assert_close(scores(policy), training, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantize", QUANTISED[:3], ids=["nf4-double", "nf4", "fp4"])
def test_an_adapter_and_4_bits_in_one_pass_are_pefts_and_bitsandbytes(wide: Path, quantize: Quantize) -> None:
    ours, theirs = (load(wide, dtype="float32", lora=Lora(rank=4, alpha=8), quantize=quantize) for _ in range(2))
    for layer in [module for module in theirs.module.modules() if "forward" in vars(module) and hasattr(module, "lora_A")]:
        del layer.forward
    for policy in (ours, theirs):
        shake(policy)
        policy.module.train()
    found = gradients(ours, lay_out(PAIRS))
    assert any("_BothProducts" in name for name in graph_of(ours.score(lay_out(PAIRS))))
    assert_close(found, gradients(theirs, lay_out(PAIRS)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores(ours), scores(theirs), rtol=1e-5, atol=1e-5)


def graph_of(result: Tensor) -> set[str]:
    """The names of all that its gradient passes."""
    seen, waiting = set(), [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return {node.name() for node in seen}


def raw(parameter: Tensor) -> Tensor:
    """A copy of the bytes: 4-bit weights in the guise of bfloat16 may spell NaN."""
    return parameter.detach().view(torch.uint8).clone()


def five_steps(policy: MistralPolicy, optimizer: AdamW) -> list[float]:
    corpus: Any = ListCorpus(random_trees(8))
    adamw = partial(optimizer.build, learning_rate=1e-2)
    trainer = Trainer(policy, Sft(), optimizer=adamw, learning_rate=lambda _: 1e-2, seed=0)
    feed = Feed(corpus, Sft(), 64, True, CPU, World())
    losses = []
    for _ in range(5):
        losses.append(trainer.step(feed.step(range(8))).means["loss"].item())
        trainer.evaluate(iter([feed.step(range(8))]))
    return losses


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for blocks of 64 weights."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    return write_model(tmp_path_factory.mktemp("wide"), dtype=torch.bfloat16, **shape)


@pytest.mark.parametrize("quantize", [Quantize(), Quantize(bits=8)], ids=["nf4", "8-bit"])
def test_stacked_adapters_on_a_quantised_base(wide: Path, tmp_path: Path, quantize: Quantize) -> None:
    policy = quantised(wide, quantize)
    shake(policy)
    policy.save(tmp_path / "sft")
    below = scores(policy)
    policy = quantised(wide, quantize, start=Start(tmp_path / "sft", frozenset({"lora"})))
    check_reference_roughly(policy, below)
    policy.save(tmp_path / "dpo")
    again = quantised(wide, quantize, start=Start(tmp_path / "dpo"), train=False)
    assert (scores(again) - scores(policy)).abs().mean() < 0.05, "bfloat16"


def check_reference_roughly(policy: MistralPolicy, expected: Tensor) -> None:
    shake(policy, seed=9)
    with torch.no_grad(), policy.reference():
        assert torch.equal(policy.score(lay_out(PAIRS)), expected)
    assert (scores(policy) - expected).abs().max() > 0.1

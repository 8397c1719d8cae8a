"""The last layer is spared the tokens that nobody reads; scores and gradients are what they are without that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policies import assert_close, backend, gradients, load, shake
from tiny import random_trees, write_model
from torch.utils.flop_counter import FlopCounterMode
from zkit_attentions.dense import Dense
from zkit_mistral.backend import Lora
from zkit_mistral.policy import bare

from zephyr_kit.batch import Batch, Tree, lay_out
from zephyr_kit.protocols import Start

TREES = random_trees(5, completions=2, longest=20, all_trained=False)
WAYS = [{}, {"lora": Lora(rank=4)}, {"lora": Lora(rank=4), "activation_checkpointing": "block"}, {"activation_checkpointing": "selective"}]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("options", WAYS, ids=["full", "lora", "lora-computed-again", "full-computed-again"])
def test_scores_and_gradients_are_those_of_whole_rows(weights: Path, options: dict[str, Any], share_prompts: bool) -> None:
    policy = load(weights, dtype="float64", **options)
    shake(policy)
    batch = lay_out(TREES, share_prompts=share_prompts)
    assert len(batch.read_R) < len(batch.tokens_T)
    torch.testing.assert_close(policy.score(batch), policy.score(whole(batch)), rtol=1e-12, atol=1e-12)
    assert_close(gradients(policy, batch), gradients(policy, whole(batch)), rtol=1e-12, atol=1e-12)


def test_only_keys_and_values_are_made_of_all_tokens(weights: Path) -> None:
    """The operations that are spared are those of the other products."""
    policy, batch = load(weights, lora=None), lay_out(TREES)
    layer = bare(policy.module.model).model.layers[-1]
    projections = [getattr(layer.self_attn, name) for name in ("q_proj", "o_proj")]
    products = [*projections, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
    a_token = sum(2 * product.weight.numel() for product in products)
    spared = operations(policy, whole(batch)) - operations(policy, batch)
    assert spared == a_token * (len(batch.tokens_T) - len(batch.read_R)) > 0


def test_a_plan_counts_what_is_done(weights: Path) -> None:
    batch, policy = lay_out(TREES), backend(weights, attention=Dense()).skeleton(Start()).policy
    meta = batch.mapped(lambda tensor: tensor.to(next(policy.module.parameters()).device))
    assert operations(policy, meta) == operations(load(weights, attention=Dense()), batch)


@pytest.mark.parametrize("options", [{}, {"lora": Lora(rank=4)}], ids=["full", "lora"])
def test_hooks_of_others_see_all_tokens(weights: Path, options: dict[str, Any]) -> None:
    policy, batch, seen = load(weights, **options), lay_out(TREES), []
    bare(policy.module.model).model.layers[-1].self_attn.q_proj.register_forward_hook(
        lambda _, given, made: seen.append((given[0].shape[1], made.shape[1]))
    )
    policy.score(batch)
    assert seen == [(len(batch.tokens_T), len(batch.tokens_T))]


def test_who_looks_into_a_layer_finds_it_whole(weights: Path) -> None:
    """What is exported is compared by layers with what they make of the last tokens of a row."""
    policy, batch, seen = load(weights), lay_out(TREES), []
    bare(policy.module.model).model.layers[-1].mlp.register_forward_hook(lambda _, __, made: seen.append(made))
    policy.distributions(batch)
    assert seen[0][0].abs().sum(-1).min() > 0


def test_a_row_without_targets_has_no_scores_and_no_gradients(weights: Path) -> None:
    tree = TREES[0]
    batch = lay_out([Tree(tree.prompt, tree.completions, tuple(np.zeros_like(flags) for flags in tree.trained))])
    policy = load(weights, lora=Lora(rank=4))
    assert policy.score(batch).shape == (0,)
    found = gradients(policy, batch)
    assert found
    assert not any(gradient.any() for gradient in found.values())


def test_sources_are_read_once_each() -> None:
    batch = lay_out(TREES)
    assert len(batch.source_M) > len(batch.source_M.unique()), "completions share the last token of their prompt"
    assert torch.equal(batch.read_R, batch.source_M.unique())


def whole(batch: Batch) -> Batch:
    """All of its tokens are read."""
    return replace(batch, read_R=torch.arange(len(batch.tokens_T)))


def operations(policy: Any, batch: Batch) -> int:
    """Of scoring it."""
    with FlopCounterMode(display=False) as counter:
        policy.score(batch)
    return counter.get_total_flops()

"""The last layer is spared the tokens that nobody reads; scores and gradients are what they are without that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policies import assert_close, gradients, load, scores, shake
from tiny import random_trees, write_model
from zkit_mistral.backend import Lora
from zkit_mistral.policy import MistralPolicy, bare

from zephyr_kit.batch import Tree, lay_out

TREES = random_trees(5, completions=2, longest=20, all_trained=False)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
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
    whole = replace(batch, read_R=torch.arange(len(batch.tokens_T)))
    torch.testing.assert_close(policy.score(batch), policy.score(whole), rtol=1e-12, atol=1e-12)
    assert_close(gradients(policy, batch), gradients(policy, whole), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"lora": Lora(rank=4)}], ids=["full", "lora"])
def test_only_keys_and_values_are_made_of_all_tokens(weights: Path, options: dict[str, Any]) -> None:
    policy, batch = load(weights, **options), lay_out(TREES)
    first, last = (rows_seen(policy, layer) for layer in (0, -1))
    policy.score(batch)
    all_tokens, read = len(batch.tokens_T), len(batch.read_R)
    assert first == dict.fromkeys(PROJECTIONS, all_tokens)
    assert last == {name: all_tokens if name in ("k_proj", "v_proj") else read for name in PROJECTIONS}


def test_a_row_without_targets_has_no_scores_and_no_gradients(weights: Path) -> None:
    tree = TREES[0]
    batch = lay_out([Tree(tree.prompt, tree.completions, tuple(np.zeros_like(flags) for flags in tree.trained))])
    policy = load(weights, lora=Lora(rank=4))
    assert scores(policy, TREES).shape == lay_out(TREES).target_M.shape
    assert policy.score(batch).shape == (0,)
    assert all(not gradient.any() for gradient in gradients(policy, batch).values())


def test_sources_are_read_once_each() -> None:
    batch = lay_out(TREES)
    assert len(batch.source_M) > len(batch.source_M.unique()), "completions share the last token of their prompt"
    assert torch.equal(batch.read_R, batch.source_M.unique())


def rows_seen(policy: MistralPolicy, layer: int) -> dict[str, int]:
    """Filled by each projection of the layer, when it is computed, with the rows that it was given."""
    seen: dict[str, int] = {}
    part = bare(policy.module.model).model.layers[layer]
    for name, module in part.named_modules():
        if name.rpartition(".")[2] in PROJECTIONS:
            key = name.rpartition(".")[2]
            module.register_forward_pre_hook(lambda _, given, key=key: seen.__setitem__(key, given[0].shape[1]))
    return seen

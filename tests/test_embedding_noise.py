"""NEFTune: noise on the embeddings, only while learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from policies import PAIRS, load
from tiny import random_trees, write_model
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations.neftune import neftune_post_forward_hook
from zkit_mistral.noise import lengths
from zkit_mistral.quiet import quiet

from zephyr_kit.batch import Batch, lay_out

ALPHA = 5.0


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def scored(policy: Any, batch: Batch, *, train: bool) -> Tensor:
    policy.module.train(train)
    torch.manual_seed(7)
    scores: Tensor = policy.score(batch)
    return scores.detach()


def test_it_is_that_of_transformers(weights: Path) -> None:
    """For one example by itself, where the padding of theirs has no say in the length."""
    (tree,) = random_trees(1, longest=12)
    policy, batch = load(weights, embedding_noise=ALPHA), lay_out([tree])
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    model.train()
    embedding = model.get_input_embeddings()
    embedding.neftune_noise_alpha = ALPHA
    embedding.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(7)
    logp = model(batch.tokens_T[None]).logits[0].log_softmax(-1)
    expected = logp[batch.source_M, batch.target_M].detach()
    torch.testing.assert_close(scored(policy, batch, train=True), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, scored(policy, batch, train=False), atol=1e-2)


def test_there_is_none_where_nothing_is_learnt(weights: Path) -> None:
    noisy, plain, batch = load(weights, embedding_noise=ALPHA), load(weights), lay_out(PAIRS)
    silent = scored(plain, batch, train=True)
    assert not torch.equal(scored(noisy, batch, train=True), silent)
    assert torch.equal(scored(noisy, batch, train=False), silent)
    with torch.no_grad():
        assert torch.equal(scored(noisy, batch, train=True), silent)
    noisy.keep_reference()
    noisy.module.train()
    with noisy.reference():
        assert torch.equal(noisy.score(batch).detach(), silent)


def test_a_length_is_that_of_the_example() -> None:
    batch = lay_out([*random_trees(2, seed=3), *PAIRS])
    own = dict(enumerate(batch.lengths))
    longest = {p: max(own[s] for s, parent in enumerate(batch.parents) if parent == p) for p in batch.parents if p >= 0}
    whole = [own[s] + own.get(p, 0) + longest.get(s, 0) for s, p in enumerate(batch.parents)]
    assert longest
    assert lengths(batch).tolist() == [whole[s] for s in batch.segment_T.tolist()]

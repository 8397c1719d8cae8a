"""Packed rows against transformers' own logits, for each shape of model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policies import PAIRS, assert_close, gradients, load, scores
from tiny import logits_logp, random_trees, write_model
from torch import Tensor
from zkit_attentions.dense import Dense
from zkit_attentions.segments import Segments
from zkit_mistral.agreement import check_agreement
from zkit_mistral.attention import NAME
from zkit_mistral.policy import bare
from zkit_mistral.quiet import quiet

from zephyr_kit import ZkitError
from zephyr_kit.batch import Batch, lay_out
from zephyr_kit.protocols import Attention


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Mistral": {},
    "Llama": {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Phi3": {},
    "Olmo2": {},
    "GPTNeoX": {},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", [Dense(), Segments()], ids=["dense", "segments"])
def test_packed_rows_score_as_transformers_logits(tmp_path: Path, architecture: str, attention: Attention) -> None:
    folder = write_model(tmp_path, architecture, **ARCHITECTURES[architecture])
    policy = load(folder, attention=attention)
    expected = theirs(folder, "eager")
    for share_prompts in (True, False):
        policy.module.eval()
        with torch.no_grad():
            found = policy.score(lay_out(PAIRS, share_prompts=share_prompts))
        assert found.tolist() == pytest.approx(expected, abs=2e-4)


def theirs(folder: Path, implementation: str, trees: Any = PAIRS) -> list[float]:
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=implementation)
    return logits_logp(model, trees)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        ("Mistral", {"sliding_window": 5}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("Gemma3", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
@pytest.mark.parametrize("attention", [Dense(), Segments()], ids=["dense", "segments"])
def test_a_sliding_window_is_that_of_transformers(tmp_path: Path, architecture: str, shape: dict[str, Any], attention: Attention) -> None:
    folder = write_model(tmp_path, architecture, **shape)
    trees = random_trees(4, completions=2, longest=20)
    found = scores(load(folder, attention=attention), trees)
    expected = theirs(folder, "eager", trees)
    assert found.tolist() == pytest.approx(expected, abs=2e-4)
    wider = write_model(tmp_path / "wide", architecture, **{**shape, "sliding_window": 100})
    assert max(abs(np.array(expected) - np.array(theirs(wider, "eager", trees)))) > 1e-2, "the window matters here"


def test_soft_caps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ZkitError, match="soft cap"):
        load(write_model(tmp_path / "both", "Gemma2"))
    with pytest.raises(ZkitError, match="attn_logit_softcapping"):
        load(write_model(tmp_path / "attention", "Gemma2", final_logit_softcapping=None))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        ("Granite", {"logits_scaling": 8.0}),
        ("Granite", {"logits_scaling": 8.0, "initializer_range": 0.02}),
        ("Cohere2", {}),
        ("Cohere", {"logit_scale": 0.8}),
    ],
    ids=["granite", "granite-unsure", "cohere2", "cohere"],
)
def test_logits_that_are_scaled_are_refused(tmp_path: Path, architecture: str, shape: dict[str, Any], dtype: str) -> None:
    with pytest.raises(ZkitError, match=f"{architecture}ForCausalLM: packed rows do not score"):
        load(write_model(tmp_path, architecture, **shape), dtype=dtype)


def test_a_plain_granite_is_welcome(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "Granite", logits_scaling=1.0)
    assert scores(load(folder)).tolist() == pytest.approx(theirs(folder, "eager"), abs=2e-4)


@dataclass(frozen=True)
class Leaky(Dense):
    """Lets every segment see the ones before it."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, **options: Any) -> Tensor:
        whole = replace(batch, segment_T=torch.zeros_like(batch.segment_T), parent_S=torch.full((1,), -1))
        return super().attend(query, key, value, whole, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_attention_that_leaks_is_refused(weights: Path, dtype: str) -> None:
    with pytest.raises(ZkitError, match="packed rows do not score"):
        load(weights, dtype=dtype, attention=Leaky())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_check_leaves_no_trace(weights: Path, dtype: str) -> None:
    model = bare(load(weights, dtype=dtype).module.model)
    for training in (True, False):
        model.train(training)
        before = torch.random.get_rng_state()
        check_agreement(model, Segments(), tolerance=0.15)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert all(module.training is training for module in model.modules())
        assert model.config._attn_implementation == NAME
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_layers_that_mix_tokens_otherwise_are_refused(tmp_path: Path, weights: Path) -> None:
    policy = load(weights)
    causal = bare(policy.module.model)
    causal.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ZkitError, match="linear_attention"):
        type(policy.module)(policy.module.model, Segments())
    causal.config.layer_types = None
    causal.config._attn_implementation = "sdpa"
    with pytest.raises(ZkitError, match="0 of 2 layers"):
        policy.score(lay_out(PAIRS))


def test_a_head_with_a_bias_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZkitError, match="plain linear head"):
        load(write_model(tmp_path, "Phi", partial_rotary_factor=0.5))


def test_attention_dropout_is_at_work_in_training_alone(tmp_path: Path) -> None:
    policy = load(write_model(tmp_path, attention_dropout=0.5))
    assert torch.equal(scores(policy), scores(policy))
    policy.module.train()
    with torch.no_grad():
        assert not torch.equal(policy.score(lay_out(PAIRS)), policy.score(lay_out(PAIRS)))


@pytest.mark.parametrize("architecture", ["Mistral", "Qwen3", "Gemma", "Gemma3", "Olmo2"])
def test_float64_stays_float64(tmp_path: Path, architecture: str) -> None:
    folder = write_model(tmp_path, architecture)
    policy = load(folder, dtype="float64")
    batch = lay_out(PAIRS)
    assert policy.score(batch).dtype == torch.float64
    repeated = lay_out(PAIRS, share_prompts=False)
    torch.testing.assert_close(policy.score(batch), policy.score(repeated), rtol=1e-12, atol=1e-12)
    assert_close(gradients(policy, batch), gradients(policy, repeated), rtol=1e-10, atol=1e-11)
    short = load(folder)
    torch.testing.assert_close(policy.score(batch).float(), short.score(batch), rtol=1e-4, atol=1e-4)


def test_a_batch_without_targets_scores_to_nothing(weights: Path) -> None:
    tree = random_trees(1)[0]
    blank = type(tree)(tree.prompt, tree.completions, tuple(np.zeros(len(ids), np.bool_) for ids in tree.completions))
    policy = load(weights)
    logp = policy.score(lay_out([blank]))
    assert logp.shape == (0,)
    logp.sum().backward()

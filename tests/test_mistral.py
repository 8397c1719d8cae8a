"""The backend `mistral`: the fused head, references, adapters, quantised bases, and other architectures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ListCorpus, logits_logp, random_trees, write_model
from torch import Tensor, nn
from zkit_attentions.auto import Auto
from zkit_attentions.dense import Dense
from zkit_attentions.segments import Segments
from zkit_mistral import head
from zkit_mistral.backend import Lora, Mistral, Quantize
from zkit_mistral.head import target_logp
from zkit_mistral.policy import MistralPolicy, bare
from zkit_mistral.quiet import quiet
from zkit_optimizers.adamw import AdamW, AdamW8bit
from zkit_preference.dpo import Dpo
from zkit_sft.objective import Sft

from zephyr_kit import ZkitError
from zephyr_kit.batch import Batch, lay_out
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed
from zephyr_kit.protocols import Attention, Start
from zephyr_kit.world import World

CPU = torch.device("cpu")
PAIRS = random_trees(4, completions=2, longest=9)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def backend(weights: Path, **options: Any) -> Mistral:
    return Mistral(**{"weights": str(weights), "dtype": "float32", "template": "zephyr", "attention": Auto(), **options})


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


# The fused head.


def plainly(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(-1).gather(-1, target[:, None]).squeeze(-1)


def head_inputs(
    rows: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rows * 1000 + vocabulary)
    hidden, weight = (scale * torch.randn(size, width, generator=draw, dtype=torch.float64) for size in (rows, vocabulary))
    target = torch.randint(vocabulary, (rows,), generator=draw)
    upstream = torch.randn(rows, generator=draw, dtype=torch.float64)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target, upstream


@pytest.mark.parametrize("max_logits", [1, 50, 1 << 24])
@pytest.mark.parametrize(("rows", "width", "vocabulary"), [(1, 1, 2), (7, 5, 13), (16, 8, 16), (33, 3, 7), (5, 64, 1)])
def test_the_head_is_log_softmax(monkeypatch: pytest.MonkeyPatch, rows: int, width: int, vocabulary: int, max_logits: int) -> None:
    monkeypatch.setattr(head, "MAX_LOGITS", max_logits)
    hidden, weight, target, upstream = head_inputs(rows, width, vocabulary)
    found, expected = target_logp(hidden, weight, target), plainly(hidden, weight, target)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(found, (hidden, weight), upstream)
    theirs = torch.autograd.grad(expected, (hidden, weight), upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_the_head_has_the_gradient_of_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "MAX_LOGITS", 20)
    hidden, weight, target, _ = head_inputs(6, 4, 9)
    assert torch.autograd.gradcheck(lambda h, w: target_logp(h, w, target), (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_in_shorter_types(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(head, "MAX_LOGITS", 300)
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


def test_a_batch_without_targets_scores_to_nothing(weights: Path) -> None:
    tree = random_trees(1)[0]
    blank = type(tree)(tree.prompt, tree.completions, tuple(np.zeros(len(ids), np.bool_) for ids in tree.completions))
    policy = load(weights)
    logp = policy.score(lay_out([blank]))
    assert logp.shape == (0,)
    logp.sum().backward()


# References.


def explode() -> None:
    raise RuntimeError("in the middle")


@contextmanager
def explosion() -> Iterator[None]:
    with pytest.raises(RuntimeError, match="in the middle"):
        yield


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


def test_the_reference_of_a_new_adapter_is_the_bare_model(weights: Path) -> None:
    check_reference(load(weights, lora=Lora(rank=4, dropout=0.3)), scores(load(weights, train=False)))


def test_the_reference_of_a_stacked_adapter_is_the_one_below(weights: Path, tmp_path: Path) -> None:
    expected, folder = first_stage(weights, tmp_path / "sft", dropout=0.4)
    policy = load(weights, Start(folder, frozenset({"lora"})), lora=Lora(rank=2, dropout=0.3))
    assert all(".default." in name for name in trained(policy))
    check_reference(policy, expected)


def test_the_reference_of_a_continued_adapter_is_how_it_began(weights: Path, tmp_path: Path) -> None:
    expected, folder = first_stage(weights, tmp_path / "sft", dropout=0.4)
    policy = load(weights, Start(folder), lora=Lora(rank=4, alpha=8, dropout=0.4))
    assert all(".default." in name for name in trained(policy))
    check_reference(policy, expected)


def test_the_reference_of_full_weights_is_a_frozen_twin(weights: Path) -> None:
    policy = load(weights)
    check_reference(policy, scores(policy))


def test_the_reference_drops_nothing_out_while_training(weights: Path, tmp_path: Path) -> None:
    """The adapter below must answer the same each time, in training too."""
    _, folder = first_stage(weights, tmp_path / "sft", dropout=0.5)
    policy = load(weights, Start(folder, frozenset({"lora"})), lora=Lora(rank=2, dropout=0.0))
    policy.module.train()
    batch = lay_out(PAIRS)
    with torch.no_grad():
        assert torch.equal(policy.score(batch), policy.score(batch))
        assert torch.equal(policy.score(batch), scores(policy))


def test_dropout_is_at_work_in_training_alone(weights: Path) -> None:
    policy = load(weights, lora=Lora(rank=4, dropout=0.5))
    shake(policy)
    policy.module.train()
    batch = lay_out(PAIRS)
    with torch.no_grad():
        assert not torch.equal(policy.score(batch), policy.score(batch))
    assert torch.equal(scores(policy), scores(policy))


# Saving and loading.


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_full_weights_come_back(weights: Path, tmp_path: Path, dtype: str) -> None:
    policy = load(weights, dtype=dtype)
    shake(policy)
    policy.save(tmp_path / "out")
    assert torch.equal(scores(load(weights, Start(tmp_path / "out"), dtype=dtype, train=False)), scores(policy))
    assert torch.equal(scores(load(tmp_path / "out", dtype=dtype)), scores(policy))


def test_full_weights_come_back_in_transformers_alone(weights: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = load(weights)
    shake(policy)
    policy.save(tmp_path)
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert scores(policy).tolist() == pytest.approx(logits_logp(theirs, PAIRS), abs=1e-4)
    tokens = AutoTokenizer.from_pretrained(tmp_path)
    assert tokens.chat_template == policy.tokenizer.tokens.chat_template
    assert theirs.generation_config.eos_token_id == policy.tokenizer.stop_ids


def with_peft(weights: Path, folder: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with quiet():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32), folder).eval()


def test_an_adapter_comes_back(weights: Path, tmp_path: Path) -> None:
    expected, folder = first_stage(weights, tmp_path / "sft")
    assert torch.equal(scores(load(weights, Start(folder), lora=Lora(rank=4, alpha=8), train=False)), expected)
    assert expected.tolist() == pytest.approx(logits_logp(with_peft(weights, folder), PAIRS), abs=1e-4)


NARROW = {"targets": ("q_proj", "v_proj")}


@pytest.mark.parametrize(
    ("below", "above"),
    [
        pytest.param({}, {"rank": 2, "alpha": 16}, id="plain"),
        pytest.param({"rslora": True}, {"rank": 2}, id="rank-stabilised-below"),
        pytest.param({}, {"rank": 3, "rslora": True}, id="rank-stabilised-above"),
        pytest.param(NARROW, {"rank": 8}, id="fewer-layers-below"),
        pytest.param({}, {"rank": 8, **NARROW}, id="fewer-layers-above"),
        pytest.param({"targets": ("up_proj",)}, {"rank": 8, **NARROW}, id="other-layers"),
    ],
)
def test_stacked_adapters_are_saved_as_one(weights: Path, tmp_path: Path, below: dict[str, Any], above: dict[str, Any]) -> None:
    _, folder = first_stage(weights, tmp_path / "sft", **below)
    policy = load(weights, Start(folder, frozenset({"lora"})), lora=Lora(**above))
    shake(policy, seed=11)
    expected, flags = scores(policy), trained(policy).keys()
    policy.save(tmp_path / "dpo")
    assert not list((tmp_path / "dpo").glob("*/"))
    again = load(weights, Start(tmp_path / "dpo"), lora=Lora(**above), train=False)
    torch.testing.assert_close(scores(again), expected, rtol=1e-4, atol=1e-5)
    assert expected.tolist() == pytest.approx(logits_logp(with_peft(weights, tmp_path / "dpo"), PAIRS), abs=1e-4)
    # Saving changes nothing: a stage may be saved, and go on.
    assert torch.equal(scores(policy), expected)
    assert trained(policy).keys() == flags
    assert gradients(policy, lay_out(PAIRS)).keys() == flags


def test_dora_cannot_be_stacked(weights: Path, tmp_path: Path) -> None:
    _, folder = first_stage(weights, tmp_path / "sft")
    with pytest.raises(ZkitError, match="DoRA cannot be added"):
        load(weights, Start(folder, frozenset({"lora"})), lora=Lora(rank=2, dora=True))


def test_dora_learns_and_comes_back(weights: Path, tmp_path: Path) -> None:
    policy = load(weights, lora=Lora(rank=2, dora=True))
    check_reference(policy, scores(load(weights, train=False)))
    policy.save(tmp_path)
    again = load(weights, Start(tmp_path), lora=Lora(rank=2, dora=True), train=False)
    torch.testing.assert_close(scores(again), scores(policy), rtol=1e-6, atol=1e-6)


def test_an_adapter_on_the_head_is_refused(weights: Path) -> None:
    """The fused head takes the head's own weight, so an adapter there would do nothing."""
    with pytest.raises(ZkitError, match="lm_head"):
        load(weights, lora=Lora(targets=("q_proj", "lm_head")))


def test_an_unknown_target_is_refused(weights: Path) -> None:
    with pytest.raises(ZkitError, match="q_porj"):
        load(weights, lora=Lora(targets=("q_porj",)))


# Quantised bases.

QUANTISED = [Quantize(), Quantize(double=False), Quantize(kind="fp4"), Quantize(bits=8)]


def quantised(weights: Path, quantize: Quantize, **options: Any) -> MistralPolicy:
    return load(weights, dtype="bfloat16", lora=Lora(rank=4, alpha=8), quantize=quantize, **options)


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


# Activation checkpointing.


@pytest.mark.parametrize("lora", [None, Lora(rank=4), Lora(rank=4, dropout=0.3)], ids=["full", "lora", "lora-with-dropout"])
def test_activations_computed_again_give_the_same_gradients(weights: Path, lora: Lora | None) -> None:
    kept, again = (load(weights, lora=lora, activation_checkpointing=flag) for flag in (False, True))
    switches = ("gradient_checkpointing", "activation_checkpointing")
    assert any(getattr(module, switch, False) for module in again.module.modules() for switch in switches)
    for policy in (kept, again):
        shake(policy)
    assert_close(gradients(again, lay_out(PAIRS)), gradients(kept, lay_out(PAIRS)), rtol=0, atol=0)


def test_activations_computed_again_on_a_quantised_base(wide: Path) -> None:
    kept, again = (quantised(wide, Quantize(), activation_checkpointing=flag) for flag in (False, True))
    for policy in (kept, again):
        shake(policy)
    assert_close(gradients(again, lay_out(PAIRS)), gradients(kept, lay_out(PAIRS)), rtol=0, atol=0)


def test_activations_computed_again_with_a_reference(weights: Path) -> None:
    """The adapters that are active in the backward pass are those that were in the forward one."""
    found = []
    for flag in (False, True):
        policy = load(weights, lora=Lora(rank=4, dropout=0.2), activation_checkpointing=flag)
        shake(policy)
        corpus: Any = ListCorpus(PAIRS)
        trainer = Trainer(policy, Dpo(), optimizer=partial(AdamW().build, learning_rate=1e-2), learning_rate=lambda _: 1e-2, seed=0)
        feed = Feed(corpus, Dpo(), 40, True, CPU, World())
        policy.keep_reference()
        for _ in range(3):
            trainer.step(feed.step(range(4)))
        found.append({name: p.detach() for name, p in trained(policy).items()})
    assert_close(*found, rtol=0, atol=0)


# Other architectures.

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Mistral": {},
    "Llama": {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Phi3": {},
    "Olmo2": {},
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


def test_layers_that_mix_tokens_otherwise_are_refused(tmp_path: Path, weights: Path) -> None:
    policy = load(weights)
    causal = bare(policy.module.model)
    causal.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ZkitError, match="linear_attention"):
        type(policy.module)(policy.module.model, Auto())
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


def test_float64_stays_float64(weights: Path) -> None:
    policy = load(weights, dtype="float64")
    batch = lay_out(PAIRS)
    assert policy.score(batch).dtype == torch.float64
    shared, repeated = gradients(policy, batch), gradients(policy, lay_out(PAIRS, share_prompts=False))
    assert_close(shared, repeated, rtol=1e-10, atol=1e-12)
    short = load(weights)
    torch.testing.assert_close(policy.score(batch).float(), short.score(batch), rtol=1e-4, atol=1e-4)

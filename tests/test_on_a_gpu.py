"""What only a CUDA GPU shows: the same scores and gradients as on a CPU, and steps that never wait for the device."""

from __future__ import annotations

import pytest
import torch
from tiny import random_trees, write_model
from zkit_attentions.auto import Auto
from zkit_attentions.dense import Dense
from zkit_mistral.backend import Lora, Mistral, Quantize
from zkit_mistral.head import target_logp
from zkit_optimizers.adamw import AdamW, AdamW8bit, PagedAdamW8bit, PagedAdamW32bit
from zkit_preference.dpo import Dpo
from zkit_sft.objective import Sft

from zephyr_kit import ZkitError
from zephyr_kit.batch import lay_out
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import StepWork, Work
from zephyr_kit.protocols import Start, num_units, updates_bfloat16

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]
GPU = torch.device("cuda")
SHAPE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 512}
WAYS = {"full": {}, "lora": {"lora": Lora(rank=8)}, "qlora": {"lora": Lora(rank=8), "quantize": Quantize()}}
BATCH = lay_out(random_trees(12, completions=2, longest=90))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model", dtype=torch.bfloat16, **SHAPE)


def load(weights, device, dtype="bfloat16", **settings):
    torch.manual_seed(0)
    model = Mistral(weights=str(weights), dtype=dtype, template="zephyr", **{"attention": Auto(), **settings})
    policy = model.load(device, start=Start(), train=True)
    draw = torch.Generator().manual_seed(5)
    for name, parameter in policy.module.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return policy


def results(policy, batch):
    logp_M = policy.score(batch)
    logp_M.sum().backward()
    return [logp_M.detach(), *(p.grad for p in policy.module.parameters() if p.requires_grad)]


def distance(one, other):
    one, other = one.double().cpu(), other.double().cpu()
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("way", ["full", "lora"])
def test_scores_and_gradients_are_as_near_to_float64_as_a_cpus_in_bfloat16(weights, way, kernels):
    ours = results(load(weights, GPU, kernels=kernels, **WAYS[way]), BATCH.to(GPU))
    exact, rounded = (results(load(weights, torch.device("cpu"), dtype, **WAYS[way]), BATCH) for dtype in ("float64", "bfloat16"))
    assert len(ours) == len(exact)
    for one, other, right in zip(ours, rounded, exact, strict=True):
        assert distance(one, right) < 1.5 * distance(other, right) + 1e-3


def test_float32_takes_no_shortcut(weights):
    ours = results(load(weights, GPU, "float32"), BATCH.to(GPU))
    exact = results(load(weights, torch.device("cpu"), "float64"), BATCH)
    assert max(distance(one, other) for one, other in zip(ours, exact, strict=True)) < 1e-4


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 32000), (1500, 32000), (3000, 32003), (7, 129)])
def test_the_head_is_log_softmax(rows, vocabulary, frozen):
    draw = torch.Generator(GPU).manual_seed(rows)
    hidden = torch.randn(rows, 64, device=GPU, generator=draw).bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, 64, device=GPU, generator=draw).bfloat16().requires_grad_(not frozen)
    target = torch.randint(vocabulary, (rows,), device=GPU, generator=draw)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact = (wide[0] @ wide[1].T).log_softmax(-1).gather(-1, target[:, None]).squeeze(-1)
    found = target_logp(hidden, weight, target)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    found.sum().backward()
    exact.sum().backward()
    assert distance(hidden.grad, wide[0].grad) < 1e-2
    assert frozen or distance(weight.grad, wide[1].grad) < 1e-2


def curve(weights, optimizer, **settings):
    """The losses of thirty steps, over the same three batches again and again."""
    rate = 1e-3 if "lora" in settings else 2e-4
    trainer = Trainer(
        load(weights, GPU, **settings),
        Sft(),
        optimizer=lambda parameters: optimizer.build(parameters, learning_rate=rate),
        learning_rate=lambda _: rate,
        updates_bfloat16=updates_bfloat16(optimizer),
        seed=0,
    )
    batches = [lay_out(random_trees(12, seed=seed, longest=90)).to(GPU) for seed in range(3)]
    works = [StepWork([Work(each)], num_units(Sft(), each), len(each.tokens_T), len(each.target_M)) for each in batches]
    return torch.stack([trainer.step(works[step % 3]).means["loss"].cpu() for step in range(30)])


@pytest.mark.parametrize("way", WAYS)
def test_fused_kernels_learn_as_plain_torch_does(weights, way):
    plain = curve(weights, AdamW(), attention=Dense(), kernels="torch", **WAYS[way])
    fused = curve(weights, AdamW(), **WAYS[way])
    assert plain[-1] < 0.9 * plain[0]
    assert apart(fused, plain) < 0.01


def apart(one, other):
    """The largest distance of two curves, as a share of where they begin."""
    return float((one - other).abs().max() / other[0])


@pytest.mark.parametrize(
    "change", [{"compile": True}, {"activation_checkpointing": "selective"}, {"activation_offload": True}, {"fp8": "tensorwise"}], ids=str
)
def test_what_saves_time_or_memory_learns_as_well(weights, change):
    if "fp8" in change:
        pytest.importorskip("torchao")
    try:
        plain, changed = (curve(weights, AdamW(), **settings) for settings in ({}, change))
    except ZkitError as error:
        if "compile" not in change:
            raise
        pytest.skip(str(error))  # a torch that compiles it wrongly, which is found before the first step
    assert apart(changed, plain) < (0.05 if "fp8" in change else 0.01)


@pytest.mark.parametrize("optimizer", [AdamW8bit(), PagedAdamW8bit(), PagedAdamW32bit(), AdamW(stochastic_rounding=True)], ids=repr)
def test_other_optimizers_learn_as_well(weights, optimizer):
    plain, other = (curve(weights, each) for each in (AdamW(), optimizer))
    assert apart(other, plain) < (0.06 if optimizer.stochastic_rounding else 0.02)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_never_waits_for_the_device(weights, way):
    policy = load(weights, GPU, **WAYS[way])
    optimizer = AdamW8bit() if way == "full" else AdamW()
    trainer = Trainer(
        policy,
        Dpo(),
        optimizer=lambda parameters: optimizer.build(parameters, learning_rate=1e-4),
        learning_rate=lambda _: 1e-4,
        seed=0,
    )

    def work(seed):
        batch = lay_out(random_trees(10, completions=2, seed=seed, longest=60)).to(GPU)
        reference_M = torch.zeros(len(batch.target_M), device=GPU)
        return StepWork([Work(batch, reference_M)], num_units(Dpo(), batch), len(batch.tokens_T), len(batch.target_M))

    for seed in range(3):
        trainer.step(work(seed))
    waiting = [work(seed) for seed in range(3, 6)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        totals = [trainer.step(each) for each in waiting]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(each.means["loss"]) for each in totals)


def test_flex_compiles_no_more_after_the_first_rows():
    from torch._dynamo.utils import counters
    from zkit_attentions.flex import Flex

    def row(seed):
        batch = lay_out(random_trees(8, completions=2, seed=seed, longest=100)).to(GPU)
        q, k, v = (torch.randn(heads, len(batch.tokens_T), 64, device=GPU, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2))
        Flex().attend(q, k, v, batch, scale=0.125, window=None, dropout=0.0).sum().backward()

    for seed in range(20):
        row(seed)
    compiled = counters["stats"]["unique_graphs"]
    for seed in range(20, 40):
        row(seed)
    assert counters["stats"]["unique_graphs"] == compiled

"""Activations that are computed again, or wait on the host: equal gradients, less memory."""

from __future__ import annotations

import weakref
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import CPU, PAIRS, assert_close, backend, gradients, load, quantised, scores, shake, trained
from tiny import ListCorpus, random_trees, write_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy
from zkit_attentions.segments import Segments
from zkit_mistral.activations import Mover, SavePolicy, on_the_host
from zkit_mistral.backend import Lora, Mistral, Quantize
from zkit_mistral.policy import MistralPolicy
from zkit_optimizers.adamw import AdamW
from zkit_preference.dpo import Dpo

from zephyr_kit import ZkitError
from zephyr_kit.batch import Batch, lay_out
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed
from zephyr_kit.protocols import Request, Start
from zephyr_kit.world import World

WAYS = ("none", "selective", "block")
SHAPE = {"hidden_size": 64, "intermediate_size": 224, "head_dim": 16}
"""As wide in proportion as Mistral, and for blocks of 64 weights."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), **SHAPE)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("short"), dtype=torch.bfloat16, **SHAPE)


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with dropout in its attention."""
    return write_model(tmp_path_factory.mktemp("forgetful"), attention_dropout=0.3, **SHAPE)


class Living(TorchDispatchMode):
    """Counts the bytes that were made while it is entered and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)):
            self._made[storage.data_ptr()] = weakref.ref(storage)
        return made

    @property
    def num_bytes(self) -> int:
        living = {id(storage): storage.nbytes() for storage in (reference() for reference in self._made.values()) if storage is not None}
        return sum(living.values())


def kept_bytes(policy: MistralPolicy, batch: Batch) -> int:
    """What the forward pass leaves for the backward one."""
    policy.module.train()
    with Living() as living:
        logp_M = policy.score(batch)
    assert logp_M.requires_grad
    return living.num_bytes


LORAS = [None, Lora(rank=4), Lora(rank=4, dropout=0.3), Lora(rank=4, dora=True)]


@pytest.mark.parametrize("way", ["selective", "block"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("lora", LORAS, ids=["full", "lora", "lora-with-dropout", "dora"])
@pytest.mark.parametrize("model", ["weights", "forgetful"])
def test_gradients_are_the_same_to_the_bit(request: pytest.FixtureRequest, model: str, lora: Lora | None, dtype: str, way: str) -> None:
    folder = request.getfixturevalue(model)
    kept, again = (load(folder, lora=lora, dtype=dtype, activation_checkpointing=each) for each in ("none", way))
    for policy in (kept, again):
        shake(policy)
    assert_close(gradients(again, lay_out(PAIRS)), gradients(kept, lay_out(PAIRS)), rtol=0, atol=0)


@pytest.mark.parametrize("way", ["selective", "block"])
@pytest.mark.parametrize("quantize", [Quantize(), Quantize(bits=8)], ids=["nf4", "8-bit"])
def test_gradients_are_the_same_on_a_quantised_base(short: Path, tmp_path: Path, quantize: Quantize, way: str) -> None:
    """With an adapter of its own on the one below."""
    below = quantised(short, quantize)
    shake(below)
    below.save(tmp_path)
    start = Start(tmp_path, frozenset({"lora"}))
    kept, again = (quantised(short, quantize, start=start, activation_checkpointing=each) for each in ("none", way))
    for policy in (kept, again):
        shake(policy)
    assert_close(gradients(again, lay_out(PAIRS)), gradients(kept, lay_out(PAIRS)), rtol=0, atol=0)


QLORA = {"lora": Lora(rank=4), "quantize": Quantize()}
QLORA8 = {"lora": Lora(rank=4), "quantize": Quantize(bits=8)}


@pytest.mark.parametrize("options", [{}, {"lora": Lora(rank=4, dropout=0.1)}, QLORA, QLORA8], ids=["full", "lora", "qlora", "8-bit"])
def test_each_way_keeps_less_than_the_one_before(tmp_path: Path, options: dict[str, Any]) -> None:
    """Counted in inputs of a layer."""
    num_layers, batch = 8, lay_out(random_trees(6, completions=2, longest=60))
    folder = write_model(tmp_path, dtype=torch.bfloat16, num_hidden_layers=num_layers, **SHAPE)
    policies = (load(folder, dtype="bfloat16", activation_checkpointing=way, **options) for way in WAYS)
    unit = 2 * num_layers * len(batch.tokens_T) * SHAPE["hidden_size"]
    none, selective, block = (kept_bytes(policy, batch) / unit for policy in policies)
    assert block < 1 + 2.5, "the input; and the ends of the model, by the layer"
    assert block + 4 < selective < block + 5.5, "attention (completions' in two parts), q, k and v (half as wide), o; adapters"
    assert selective + 8 < none


def test_layers_that_are_kept_take_their_memory_and_change_no_gradient(tmp_path: Path) -> None:
    num_layers, batch = 4, lay_out(random_trees(6, completions=2, longest=60))
    folder = write_model(tmp_path, dtype=torch.float32, num_hidden_layers=num_layers, **SHAPE)
    policies = [load(folder, dtype="float32", activation_checkpointing="block", layers_kept=kept) for kept in range(num_layers + 1)]
    first, *others = (gradients(policy, batch) for policy in policies)
    for other in others:
        assert_close(other, first, rtol=0, atol=0)
    sizes = [kept_bytes(policy, batch) for policy in policies]
    steps = [more - less for less, more in pairwise(sizes)]
    assert min(steps) > 0
    assert sizes[-1] == kept_bytes(load(folder, dtype="float32"), batch)
    with pytest.raises(ZkitError, match=r"layers_kept = 5: .* has 4 layers"):
        load(folder, activation_checkpointing="block", layers_kept=5)
    with pytest.raises(ValueError, match='with "none" all layers are kept'):
        Mistral(weights="somewhere", layers_kept=1, attention=Segments())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_is_kept_unless_it_draws_random_numbers(dropout: float) -> None:
    """A GPU's kernel draws inside: what is drawn after a kernel that was skipped would be others."""
    from transformers import MistralConfig

    policy = SavePolicy.of(MistralConfig(attention_dropout=dropout))
    kernels = torch.ops.aten._scaled_dot_product_flash_attention, torch.ops.aten._scaled_dot_product_efficient_attention
    for kernel in kernels:
        assert policy(None, kernel.default) is (CheckpointPolicy.PREFER_RECOMPUTE if dropout else CheckpointPolicy.MUST_SAVE)


@pytest.mark.parametrize("way", ["selective", "block"])
def test_the_reference_is_not_in_the_way(weights: Path, way: str) -> None:
    """The adapters that are active in the backward pass are those that were in the forward one."""
    found = []
    for each in ("none", way):
        policy = load(weights, lora=Lora(rank=4, dropout=0.2), activation_checkpointing=each)
        shake(policy)
        corpus: Any = ListCorpus(PAIRS)
        trainer = Trainer(policy, Dpo(), optimizer=partial(AdamW().build, learning_rate=1e-2), learning_rate=lambda _: 1e-2, seed=0)
        feed = Feed(corpus, Dpo(), 40, True, CPU, World())
        policy.keep_reference()
        for _ in range(3):
            trainer.step(feed.step(range(4)))
        found.append({name: p.detach() for name, p in trained(policy).items()})
    assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("way", ["selective", "block"])
def test_evaluation_and_generation_know_nothing_of_it(weights: Path, way: str) -> None:
    from zephyr_kit.example import Message

    kept, again = (load(weights, activation_checkpointing=each) for each in ("none", way))
    assert torch.equal(scores(kept), scores(again))
    requests = [Request((Message("user", "a b c?"),))]
    assert list(kept.generate(requests)) == list(again.generate(requests))


@pytest.mark.parametrize("way", ["none", "block"])
def test_activations_that_wait_on_the_host_come_back(weights: Path, way: str) -> None:
    """On a CPU the host is where they are already; the copies show what would be moved."""
    policy, batch = load(weights, lora=Lora(rank=4, dropout=0.2), activation_checkpointing=way), lay_out(PAIRS)
    shake(policy)
    expected = gradients(policy, batch)
    score = policy.score

    def moved(batch: Batch, smallest: int) -> Tensor:
        with on_the_host(policy.module, Mover(), smallest=smallest):
            return score(batch)

    for smallest in (0, 4096, 1 << 40):
        policy.score = partial(moved, smallest=smallest)  # type: ignore[method-assign]
        assert_close(gradients(policy, batch), expected, rtol=0, atol=0)


def test_parameters_and_small_tensors_stay_on_the_device(weights: Path) -> None:
    policy = load(weights)
    weight = policy.module.model.model.layers[0].mlp.up_proj.weight
    wide, narrow = torch.ones(64, 64, requires_grad=True), torch.ones(4, requires_grad=True)
    with on_the_host(policy.module, Mover(), smallest=4096):
        product, small = wide @ weight.T, narrow * narrow
    left, right = product.grad_fn._saved_self, product.grad_fn._saved_mat2  # type: ignore[union-attr]
    assert right.data_ptr() == weight.data_ptr()
    assert torch.equal(left, wide)
    assert left.data_ptr() != wide.data_ptr()
    assert small.grad_fn._saved_self.data_ptr() == narrow.data_ptr()  # type: ignore[union-attr]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", ["none", "block"])
def test_activations_wait_on_the_host_of_a_gpu(weights: Path, way: str) -> None:
    device, batch = torch.device("cuda"), lay_out(random_trees(40, longest=200)).to(torch.device("cuda"))
    peaks, found = [], []
    for offload in (False, True):
        policy = backend(weights, activation_checkpointing=way, activation_offload=offload).load(device, start=Start(), train=True)
        torch.cuda.reset_peak_memory_stats()
        found.append(gradients(policy, batch))
        peaks.append(torch.cuda.max_memory_allocated())
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert way == "block" or peaks[1] < peaks[0]


def test_moving_activations_is_refused_where_there_is_no_gpu(weights: Path) -> None:
    (problem,) = backend(weights, activation_offload=True).problems(CPU, start=Start())
    assert "activation_offload" in problem
    assert "cpu" in problem
    with pytest.raises(ValueError, match="activation_offload"):
        backend(weights, activation_offload=True, activation_checkpointing="selective")

"""Products in float8. No chip here has them: torchao's emulation rounds as one would, and multiplies in float32."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import backend
from tiny import ListCorpus, random_trees, write_model
from torch import Tensor, nn
from zkit_attentions.segments import Segments
from zkit_mistral import float8
from zkit_mistral.backend import Lora, Mistral
from zkit_mistral.policy import MistralPolicy
from zkit_optimizers.adamw import AdamW
from zkit_preference.dpo import Dpo
from zkit_sft.objective import Sft

from zephyr_kit import ZkitError
from zephyr_kit.batch import lay_out
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed, StepWork
from zephyr_kit.protocols import Start
from zephyr_kit.rehearsal import PlannedStep, rehearse
from zephyr_kit.world import World

CPU = torch.device("cpu")
RECIPES = ["tensorwise", "rowwise"]


@pytest.fixture
def torchao() -> None:
    pytest.importorskip("torchao", reason="fp8 is torchao's: pip install 'zephyr-kit[fp8]'")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), dtype=torch.bfloat16, initializer_range=0.05)


def load(weights: Path, *, train: bool = True, **settings: Any) -> MistralPolicy:
    return backend(weights, dtype="bfloat16", **settings).load(CPU, start=Start(seed=1), train=train)  # type: ignore[no-any-return]


def work_of(objective: Any) -> StepWork:
    corpus = ListCorpus(random_trees(8, completions=objective.completions, longest=20))
    return Feed(corpus, objective, 97, True, CPU, World()).step(range(8))  # type: ignore[arg-type]


def gradients(policy: MistralPolicy, seed: int = 0) -> list[Tensor]:
    policy.module.zero_grad()
    logp_M = policy.score(lay_out(random_trees(3, completions=2, longest=19, seed=seed)))
    logp_M.sum().backward()
    return [logp_M.detach(), *(p.grad.clone() for p in policy.module.parameters() if p.grad is not None)]


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).float().norm() / other.float().norm())


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("recipe", RECIPES)
def test_linear_layers_of_the_blocks_are_in_float8_and_nothing_else(weights: Path, recipe: str) -> None:
    policy = load(weights, fp8=recipe)
    kinds = {name: type(layer).__name__ for name, layer in policy.module.named_modules() if isinstance(layer, nn.Linear)}
    assert kinds.pop("model.lm_head") == "Linear"
    assert set(kinds.values()) == {"Float8Linear"}
    assert len(kinds) == 2 * 7
    assert {p.dtype for p in policy.module.parameters()} == {torch.bfloat16}
    assert "Float8Linear" not in str(load(weights, fp8=recipe, train=False).module), "a model that is only read is not rounded"


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("way", ["none", "selective", "block"])
def test_scores_and_gradients_are_near_those_of_bfloat16(weights: Path, recipe: str, way: str) -> None:
    ours, plain = load(weights, fp8=recipe, activation_checkpointing=way), load(weights)
    for one, other in zip(gradients(ours), gradients(plain), strict=True):
        assert 0 < gap(one, other) < 0.25
    again = gradients(load(weights, fp8=recipe))
    assert all(torch.equal(one, other) for one, other in zip(gradients(ours), again, strict=True)), "whatever is computed again"


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("objective", [Sft(), Dpo()], ids=["sft", "dpo"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_training_goes_as_in_bfloat16(weights: Path, tmp_path: Path, recipe: str, objective: Any) -> None:
    """With packed rows of any length, a live reference and stochastic rounding; what is saved is an ordinary model."""
    losses = {}
    for fp8 in ("none", recipe):
        policy = load(weights, fp8=fp8)
        policy.keep_reference()
        build = partial(AdamW(stochastic_rounding=True).build, learning_rate=3e-3)
        trainer = Trainer(policy, objective, optimizer=build, learning_rate=lambda _: 3e-3, seed=0, updates_bfloat16=True)
        losses[fp8] = [float(trainer.step(work_of(objective)).means["loss"]) for _ in range(12)]
    if objective.needs_reference:
        assert losses[recipe][0] == pytest.approx(losses["none"][0], rel=1e-3), "the reference is in float8 as the model is"
    assert losses[recipe][-1] < 0.8 * losses[recipe][0]
    assert losses[recipe][-1] == pytest.approx(losses["none"][-1], abs=0.05 * losses["none"][0])
    policy.save(tmp_path)
    saved = load(tmp_path)
    for (name, one), other in zip(policy.module.named_parameters(), saved.module.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.slow
@pytest.mark.usefixtures("torchao")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute of a Tensor")
def test_compiled_layers_say_the_same_for_rows_of_any_length(weights: Path) -> None:
    plain, compiled = (load(weights, fp8="rowwise", compile=way) for way in (False, True))
    before = 0
    for seed in range(4):
        for one, other in zip(gradients(compiled, seed), gradients(plain, seed), strict=True):
            assert gap(one, other) < 0.1
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert seed < 2 or graphs == before, "no length is compiled for itself"
        before = graphs
    assert before > 0


@pytest.mark.usefixtures("torchao")
def test_a_model_without_a_layer_that_would_fit_is_refused(tmp_path: Path) -> None:
    odd = write_model(tmp_path, hidden_size=24, head_dim=6, intermediate_size=40, dtype=torch.bfloat16)
    with pytest.raises(ZkitError, match="no linear layer in its blocks"):
        load(odd, fp8="tensorwise")


def test_it_is_for_whole_weights_in_bfloat16() -> None:
    make = partial(Mistral, weights="some/where", attention=Segments(), fp8="rowwise")
    with pytest.raises(ValueError, match="`fp8` is for training whole weights, and `lora` freezes them"):
        make(lora=Lora())
    with pytest.raises(ValueError, match=r"`fp8` rounds what is bfloat16.*instead of \"float32\""):
        make(dtype="float32")
    assert "lora" not in [step.key for step in make().leaner()]


def test_a_device_or_an_installation_without_it_is_told(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "find_spec", lambda _: None)
    told = backend(weights, dtype="bfloat16", fp8="rowwise").problems(CPU, start=Start())
    chip, library = (problem for problem in told if "fp8" in problem)
    assert "compute capability 8.9: Ada, Hopper, or newer), but the device is cpu" in chip
    assert "pip install 'zephyr-kit[fp8]'" in library
    monkeypatch.setattr(float8, "find_spec", lambda _: "there")
    monkeypatch.setattr(float8, "lacking", lambda *_: [])
    cards = {"cuda:0": ((8, 0), "A100"), "cuda:1": ((9, 0), "H100")}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: cards[str(device)][0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: cards[str(device)][1])
    (old,) = float8.problems(torch.device("cuda:0"))
    assert "but the device is A100" in old
    assert not list(float8.problems(torch.device("cuda:1")))


def test_a_plan_counts_it_as_bfloat16_and_says_so(weights: Path) -> None:
    trees = tuple(random_trees(4))
    rehearsed = {}
    for settings in ({}, {"fp8": "rowwise"}, {"compile": True}, {"fp8": "rowwise", "compile": True}):
        model = backend(weights, dtype="bfloat16", **settings)
        rehearsed[str(settings)] = rehearse(PlannedStep(model, Start(), Sft(), AdamW(), trees))
    plain, eager, compiled_plain, compiled = rehearsed.values()
    assert plain.training == eager.training
    assert compiled_plain.training == compiled.training
    assert plain.remark == ""
    assert "counted as bfloat16's" in compiled.remark
    assert "without `compile` = true" not in compiled.remark
    assert "without `compile` = true" in eager.remark


def test_reference_scores_are_those_of_the_products_they_are_made_with(weights: Path) -> None:
    prints = [backend(weights, dtype="bfloat16", fp8=fp8).scores_fingerprint(Start()) for fp8 in ("none", *RECIPES)]
    assert len({str(each) for each in prints}) == 3
    assert "fp8" not in prints[0]

"""References, and adapters that are saved, read and stacked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import PAIRS, backend, check_reference, first_stage, gradients, load, scores, shake, trained
from tiny import logits_logp, write_model
from zkit_mistral.backend import Lora
from zkit_mistral.quiet import quiet

from zephyr_kit import ZkitError
from zephyr_kit.batch import lay_out
from zephyr_kit.protocols import Start


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


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


@pytest.mark.parametrize("doras", [(True, False), (False, True)])
def test_that_dora_cannot_be_stacked_is_known_before_the_first_stage(weights: Path, doras: tuple[bool, bool]) -> None:
    earlier, later = (backend(weights, lora=Lora(rank=2, dora=dora)) for dora in doras)
    start = Start(Path("run/sft/model"), frozenset({"lora"}), earlier=((earlier, frozenset()),))
    assert any("DoRA cannot be added" in problem for problem in later.problems(torch.device("cpu"), start=start))
    with torch.device("meta"), pytest.raises(ZkitError, match="DoRA cannot be added"):
        later.skeleton(replace(start, folder=None))


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


@pytest.mark.parametrize(("dora", "expected"), [(False, torch.bfloat16), (True, torch.float32)])
def test_adapters_have_the_type_of_the_model(weights: Path, tmp_path: Path, dora: bool, expected: torch.dtype) -> None:
    """New, read, and as a reference; DoRA's magnitudes need more."""
    lora = Lora(rank=2, dora=dora)
    new = load(weights, lora=lora, dtype="bfloat16")
    new.save(tmp_path)
    again = load(weights, Start(tmp_path), lora=lora, dtype="bfloat16")
    again.keep_reference()
    for policy in (new, again, load(weights, Start(tmp_path), dtype="bfloat16", lora=lora, train=False)):
        assert {parameter.dtype for name, parameter in policy.module.named_parameters() if "lora_" in name} == {expected}
    assert torch.equal(scores(again), scores(new))

"""Kernels in the place of a model's own forwards: they say the same, and only where they can."""

import copy
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import write_model
from torch import nn
from zkit_attentions.auto import Auto
from zkit_mistral.backend import Mistral
from zkit_mistral.low_rank import add_in_one_pass
from zkit_mistral.reach import wants_liger
from zkit_mistral.rotary import use_rotation

from zephyr_kit.protocols import Start

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by peft
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
IDS = torch.arange(18).view(2, 9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    folder = write_model(tmp_path_factory.mktemp("model") / "model", dtype=torch.float64)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_head_in_triton_says_what_float64_says():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    program = Path(__file__).with_name("interpreted.py")
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def adapted(model, *, dropout=0.0, adapters=1):
    """With adapters that say something, all of them active."""
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear")
    peft = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False)
    names = ["default"]
    for number in range(1, adapters):
        names.append(f"more{number}")
        peft.add_adapter(names[-1], config)
    draw = torch.Generator().manual_seed(0)
    for key, parameter in peft.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn(parameter.shape, generator=draw, dtype=torch.float64) / 10
            parameter.requires_grad_()
    peft.base_model.set_adapter(names)
    return peft


def results(peft):
    torch.manual_seed(1)
    peft.train()
    logits = peft(input_ids=IDS).logits
    (logits * torch.linspace(-1, 1, logits.shape[-1])).sum().backward()
    return [logits.detach(), *(p.grad for p in peft.parameters() if p.grad is not None)]


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"adapters": 3}], ids=["plain", "dropout", "stacked"])
def test_lora_in_one_pass_is_pefts(model, options, in_place):
    theirs, ours = adapted(model, **options), adapted(model, **options)
    add_in_one_pass(ours, in_place=in_place)
    replaced = [module for module in ours.modules() if "forward" in vars(module)]
    assert len(replaced) == 7 * model.config.num_hidden_layers
    for one, other in zip(results(ours), results(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def bytes_kept(peft):
    """For the backward pass, beside parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in peft.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = peft.train()(input_ids=IDS).logits
    assert logits.requires_grad
    return sum(kept.values())


def test_of_what_dropout_hides_a_byte_is_kept(model):
    """And not the eight of what it leaves."""
    plain, dropping, theirs = adapted(model), adapted(model, dropout=0.3), adapted(model, dropout=0.3)
    for peft in (plain, dropping):
        add_in_one_pass(peft)
    numbers = IDS.numel() * sum(module.in_features for module in dropping.modules() if "forward" in vars(module))
    assert bytes_kept(dropping) <= bytes_kept(plain) + numbers
    assert bytes_kept(theirs) > bytes_kept(dropping) + 8 * numbers


def test_lora_in_one_pass_has_the_gradient_of_its_value(model):
    peft = adapted(model)
    add_in_one_pass(peft)
    layer = next(module for module in peft.modules() if "forward" in vars(module))
    x = torch.randn(2, 3, layer.in_features, dtype=torch.float64, requires_grad=True)
    parameters = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    assert torch.autograd.gradcheck(lambda given, *_: layer(given), (x, *parameters))


def test_adapters_switched_off_are_off(model):
    peft = adapted(model)
    add_in_one_pass(peft)
    with peft.disable_adapter():
        torch.testing.assert_close(peft(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("change", [{"use_dora": True}, {"target_modules": ["embed_tokens"]}])
def test_other_adapters_are_left_to_peft(model, change):
    peft = get_peft_model(copy.deepcopy(model), LoraConfig(**{"r": 4, "target_modules": "all-linear", **change}))
    add_in_one_pass(peft)
    assert not [module for module in peft.modules() if "forward" in vars(module)]


def test_a_rotation_that_says_the_same_takes_the_place_of_the_models(model):
    from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

    called = []

    def rotation(*given):
        called.append(given)
        return apply_rotary_pos_emb(*given)

    ours = copy.deepcopy(model)
    use_rotation(ours, torch.float64, rotation)
    called.clear()
    torch.testing.assert_close(ours(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=0, atol=0)
    assert len(called) == model.config.num_hidden_layers


def test_a_rotation_that_says_something_else_does_not(model):
    ours = copy.deepcopy(model)
    use_rotation(ours, torch.float64, lambda query, key, cos, sin: (query * cos, key * sin))
    assert not [module for module in ours.modules() if "forward" in vars(module)]
    use_rotation(nn.Sequential(nn.Linear(2, 2)), torch.float64, lambda *_: None)


def test_ligers_kernels_are_for_cuda_gpus_where_it_is_installed(monkeypatch):
    monkeypatch.setattr("zkit_mistral.reach.find_spec", lambda name: object())
    monkeypatch.setattr("zkit_mistral.reach.lacking", lambda distribution, extra: [])
    assert wants_liger(settings(), CUDA)
    assert wants_liger(settings(kernels="liger", dtype="float32"), CUDA)
    assert not wants_liger(settings(kernels="torch"), CUDA)
    assert not wants_liger(settings(compile=True), CUDA)
    assert not wants_liger(settings(dtype="float64"), CUDA)
    assert not wants_liger(settings(kernels="liger"), CPU)
    monkeypatch.setattr("zkit_mistral.reach.lacking", lambda distribution, extra: ["liger-kernel>=0.8"])
    assert not wants_liger(settings(), CUDA), "an old one may have other arguments"
    monkeypatch.setattr("zkit_mistral.reach.lacking", lambda distribution, extra: [])
    monkeypatch.setattr("zkit_mistral.reach.find_spec", lambda name: None)
    assert not wants_liger(settings(), CUDA)


def test_what_a_device_gets_is_told(monkeypatch):
    assert set(Mistral.choices(CPU).values()) == {
        "torch's norms, activations and rotations: the device is cpu",
        "torch's, logits in the model's type: the device is cpu",
    }
    ours, plain = ("Liger's", "Triton's"), ("torch's norms, activations and rotations: no Liger", "torch's, logits in the model's type")
    for there, (kernels, head) in ((object(), ours), (None, plain)):
        for place in ("reach", "softmax"):
            monkeypatch.setattr(f"zkit_mistral.{place}.find_spec", lambda name, there=there: there)
        monkeypatch.setattr("zkit_mistral.reach.lacking", lambda distribution, extra: [])
        told = Mistral.choices(CUDA)
        assert told["kernels"].startswith(kernels)
        assert told["head"].startswith(head)


def settings(**changes):
    return Mistral(weights="mistralai/Mistral-7B-v0.1", attention=Auto(), **changes)


def test_what_is_compiled_takes_no_kernels_of_ligers():
    with pytest.raises(ValueError, match="leave one of the two out"):
        settings(compile=True, kernels="liger")


def test_liger_asked_for_where_it_cannot_be_is_refused():
    model = Mistral(weights="mistralai/Mistral-7B-v0.1", revision="0" * 40, kernels="liger", attention=Auto())
    (told,) = model.problems(CPU, start=Start(folder=Path("x")))
    assert "[model] kernels: Liger's run on CUDA GPUs" in told
    assert 'leave it out, or set it to "torch"' in told

"""Merged weights are what peft and bitsandbytes say they are, whatever the model was trained with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from policies import CPU, backend, load, scores, shake
from safetensors.torch import load_file
from tiny import write_model
from zkit_mistral import merging
from zkit_mistral.backend import Lora, Mistral, Quantize
from zkit_mistral.quiet import quiet

from zephyr_kit import ZkitError
from zephyr_kit.protocols import MergingBackend, Start

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
LORA = Lora(rank=4, alpha=8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("weights"), **WIDE)


def left(weights: Path, folder: Path, **options) -> Path:
    """What a stage leaves, trained a little."""
    policy = load(weights, **options)
    shake(policy)
    policy.save(folder)
    return folder


def merged(one: Mistral, stage: Path, folder: Path, dtype: str | None = None) -> Path:
    assert isinstance(one, MergingBackend)
    told: list[int] = []
    one.merge(folder, start=Start(stage), dtype=dtype, advance=told.append)
    assert told == sorted(told)
    assert told[-1] == sum(tensor.nbytes for file in folder.glob("*.safetensors") for tensor in load_file(file).values())
    return folder


@pytest.mark.parametrize("lora", [LORA, replace(LORA, rslora=True), replace(LORA, dora=True)], ids=["lora", "rslora", "dora"])
def test_an_adapter_is_merged_as_peft_merges_it(weights, tmp_path, lora):
    from peft import AutoPeftModelForCausalLM

    stage = left(weights, tmp_path / "stage", lora=lora)
    found = load_file(merged(backend(weights, lora=lora), stage, tmp_path / "whole") / "model.safetensors")
    with quiet():
        theirs = AutoPeftModelForCausalLM.from_pretrained(stage, dtype=torch.float32).merge_and_unload().state_dict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)
    assert theirs.keys() - found.keys() <= {"lm_head.weight"}


def test_whole_weights_pass_as_they_are(weights, tmp_path):
    stage = left(weights, tmp_path / "stage")
    folder = merged(backend(weights), stage, tmp_path / "whole")
    one, other = (load_file(place / "model.safetensors") for place in (stage, folder))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_adapters_on_each_other_in_shards(weights, tmp_path, monkeypatch):
    first = left(weights, tmp_path / "sft", lora=LORA)
    top = load(weights, Start(first, frozenset({"lora"})), lora=Lora(rank=2, alpha=2))
    shake(top, seed=7)
    top.save(tmp_path / "dpo")
    monkeypatch.setattr(merging, "SHARD_BYTES", 50_000)
    folder = merged(backend(weights, lora=LORA), tmp_path / "dpo", tmp_path / "whole")
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files == sorted(file.name for file in folder.glob("*.safetensors"))
    whole = backend(folder).load(CPU, start=Start(), train=False)
    torch.testing.assert_close(scores(whole), scores(top), rtol=1e-4, atol=1e-4)
    # What was merged in shards is merged again from them.
    again = merged(backend(folder), folder, tmp_path / "again")
    assert json.loads((again / "model.safetensors.index.json").read_text("utf-8")) == index


@pytest.mark.parametrize(
    "quantize",
    [Quantize(), Quantize(double=False), Quantize(kind="fp4"), Quantize(bits=8)],
    ids=["nf4-double", "nf4", "fp4", "8-bit"],
)
def test_a_base_in_few_bits_is_what_training_had(tmp_path, quantize):
    weights = write_model(tmp_path / "weights", dtype=torch.bfloat16, **WIDE)
    options = {"dtype": "bfloat16", "lora": LORA, "quantize": quantize}
    stage = left(weights, tmp_path / "stage", **options)
    found = load_file(merged(backend(weights, **options), stage, tmp_path / "whole", "float32") / "model.safetensors")
    from peft.utils.integrations import dequantize_module_weight

    policy = load(weights, Start(stage), train=False, **options)
    layers = {name.removesuffix(".base_layer"): module for name, module in policy.adapters.peft.named_modules() if "base_layer" in name}
    assert len(layers) == 2 * 7
    for name, layer in layers.items():
        adapted = policy.adapters.peft.get_submodule(name)
        product = (adapted.lora_B["default"].weight.float() @ adapted.lora_A["default"].weight.float()) * adapted.scaling["default"]
        expected = dequantize_module_weight(layer).to(torch.bfloat16).float() + product
        torch.testing.assert_close(found[f"{name.removeprefix('base_model.model.')}.weight"], expected, rtol=1e-5, atol=1e-5)


def test_what_would_be_left_out_is_refused(weights, tmp_path):
    stage = left(weights, tmp_path / "stage", lora=LORA)
    other = write_model(tmp_path / "other", num_hidden_layers=1, **WIDE)
    config = json.loads((stage / "adapter_config.json").read_text("utf-8"))
    (stage / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(other)}), "utf-8")
    with pytest.raises(ZkitError, match=r"adapts model\.layers\.1\..*, which is no layer of the model below it"):
        merged(backend(weights, lora=LORA), stage, tmp_path / "whole")

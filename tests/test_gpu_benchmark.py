"""The benchmark for a GPU, on a CPU: both sides train alike, what is counted is right, and what fails is written down."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import server
from oracles.trl_runs import WARNINGS
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import models
from benchmarks.gpu import flash
from benchmarks.gpu.cells import KINDS, Cell
from benchmarks.gpu.foretold import foretell
from benchmarks.gpu.forked import Failed, LacksMemory, apart
from benchmarks.gpu.operations import VOCABULARY, Load, operations, padded, prompts_once, real
from benchmarks.gpu.plot import plot
from benchmarks.gpu.prepared import open_work, prepare
from benchmarks.gpu.recompiled import count
from benchmarks.gpu.results import MEASURED, NO_TIME, Results
from benchmarks.gpu.runs import OURS, TRL, measure
from benchmarks.gpu.table import write_table
from benchmarks.gpu.theirs import batches_of, micro_batches
from benchmarks.gpu.traced import trace
from benchmarks.measure import surroundings
from zephyr_kit.batch import Tree


def cell(name: str, home: Path, **changes) -> Cell:
    kind = KINDS[name]
    settings = {"tokens_per_step": 1024, "tokens_per_batch": 2048, "optimizer": kind.optimizer, "checkpointing": kind.checkpointing}
    return Cell(name, "5m", "float32", "cpu", home, **{"steps": 3, **settings, **changes})


def pair(prompt: int, *replies: int) -> Tree:
    ids, flags = np.arange(99, dtype=np.int32), np.ones(99, np.bool_)
    return Tree(ids[:prompt], tuple(ids[:size] for size in replies), tuple(flags[:size] for size in replies))


@pytest.fixture(scope="module")
def home(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    for name in ("sft-lora", "dpo-lora"):
        prepare(cell(name, folder))
    models.make("5m", "float32", folder)
    return folder


@pytest.mark.filterwarnings(*WARNINGS)
@pytest.mark.parametrize("name", ["sft-lora", "dpo-lora"])
def test_a_cell_in_small(home: Path, tmp_path: Path, name: str) -> None:
    results, case = Results(tmp_path), cell(name, home)
    results.begin(name, {"model": "5m"})
    for side in (OURS, TRL):
        told = {"outcome": MEASURED, "settings": "small", "surroundings": surroundings(1, ("torch",))}
        results.keep(name, side, {**told, **measure(case, side)})
    results.foretold(name, foretell(case))
    kept = json.loads((tmp_path / "gpu.json").read_text("utf-8"))[name]
    assert kept["beside"][TRL]["losses agree"]
    assert kept["beside"][TRL]["largest difference of a loss"] < 1e-3
    assert len(kept["sides"][OURS]["losses"]) == 3
    assert kept["plan"]["foretold GiB"] > 0
    assert kept["sides"][OURS]["utilisation, real tokens"] is None
    text = write_table(results.cells, tmp_path / "gpu.md")
    assert text.count("\n") == 4
    assert "no comparison" not in text
    plot(results.cells, tmp_path / "gpu.png")


def test_a_step_is_looked_into_and_compilations_are_counted(home: Path, tmp_path: Path) -> None:
    case = cell("dpo-lora", home)
    found = trace(case, tmp_path / "trace.json.gz")
    assert found["kernels"][0]["share"] <= 1
    assert found["chrome trace"] == "trace.json.gz"
    counted = count(case, num_batches=4)
    assert counted["allowed"]
    assert len(counted["batches"]) == 4


def test_both_sides_take_the_same_examples(home: Path) -> None:
    case = cell("dpo-lora", home, tokens_per_step=4096, tokens_per_batch=4096)
    prepare(case)
    work = open_work(case)
    assert micro_batches(case) == 2
    assert [example for batch in batches_of(case, work) for example in batch] == [i for step in range(3) for i in work.step(step)]


def test_tokens_and_the_pairs_that_see_each_other_are_counted_as_each_side_reads_them() -> None:
    trees = [pair(3, 2, 4), pair(1, 1, 1)]
    assert real(trees) == Load(5 + 7 + 2 + 2, 8, 15 + 28 + 3 + 3)
    assert prompts_once(trees) == Load(9 + 3, 8, 6 + (3 + 2 * 3) + (10 + 4 * 3) + 1 + 2 * (1 + 1))
    assert padded(trees) == Load(4 * 7, 8, 4 * 28)


def test_operations_of_full_training_are_those_that_torch_counts() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    shape, length = models.Shape(width=24, layers=2, heads=3, kv_heads=1, mlp_width=40), 11
    sizes = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "intermediate_size": shape.mlp_width, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads}
    model = MistralForCausalLM(MistralConfig(**sizes, **heads, tie_word_embeddings=False, attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(length)[None]).logits.sum().backward()
    # Without a causal kernel, every token is multiplied with every other.
    assert counter.get_total_flops() == operations(Load(length, length, length * length), shape, "full")


def test_frozen_weights_need_no_gradient_and_adapters_do() -> None:
    shape = models.SHAPES["7b"]
    full, lora = (operations(Load(tokens=1), shape, method) for method in ("full", "lora"))
    assert full == 6 * 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert lora == full * 4 // 6 + 6 * 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)


def test_what_trl_is_given_for_flash_attention_is_attention_kept_apart() -> None:
    draws = [torch.randn(1, heads, 9, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    ends = torch.tensor([0, 2, 3, 9], dtype=torch.int32)
    mask = torch.zeros(9, 9, dtype=torch.bool)
    for start, end in pairwise(ends.tolist()):
        mask[start:end, start:end] = torch.ones(end - start, end - start).tril()
    expected = scaled_dot_product_attention(*draws, attn_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    found, _ = flash.attend(torch.nn.Identity(), *draws, None, scaling=0.3, cu_seq_lens_q=ends, max_length_q=6)
    weights = torch.randn_like(found)
    assert torch.allclose(found, expected)
    for ours, exact in zip(*(torch.autograd.grad((each * weights).sum(), draws) for each in (found, expected)), strict=True):
        assert torch.allclose(ours, exact)


def test_real_tokens_of_a_padded_batch_do_not_see_the_padding() -> None:
    draws = [torch.randn(2, heads, 7, 8, dtype=torch.float64) for heads in (4, 2, 2)]
    lengths = torch.tensor([7, 4])
    there = torch.arange(7)[None] < lengths[:, None]
    mask = torch.ones(7, 7, dtype=torch.bool).tril()[None, None] & there[:, None, None]
    expected = scaled_dot_product_attention(*draws, attn_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    found, _ = flash.attend(torch.nn.Identity(), *draws, there.long(), scaling=0.3)
    assert torch.allclose(found[there], expected[there])


def _lack() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def test_why_a_run_failed_is_told(tmp_path: Path) -> None:
    context, log = server(), tmp_path / "log.txt"
    assert apart(context, log, 60, len, "four") == 4
    with pytest.raises(Failed, match="TypeError: object of type 'int' has no len"):
        apart(context, log, 60, len, 4)
    with pytest.raises(LacksMemory, match="Tried to allocate"):
        apart(context, log, 60, _lack)
    assert "Traceback" in log.read_text("utf-8")


def test_a_side_that_failed_stands_in_the_table_and_unequal_losses_are_no_comparison(tmp_path: Path) -> None:
    facts = {"outcome": MEASURED, "settings": "adamw", "real tokens a second": 9.0, "gradient norms": [1.0], "peak GiB": 2.0}
    facts |= {"peak GiB reserved": 3.0, "utilisation, computed tokens": 0.5, "utilisation, real tokens": 0.6}
    results = Results(tmp_path)
    for name, losses in (("sft-lora", 1.0), ("dpo-lora", 1.1)):
        results.begin(name, {})
        results.keep(name, OURS, {**facts, "losses": [1.0]})
        results.keep(name, TRL, {**facts, "losses": [losses]})
    results.begin("dpo-lora-selective", {})
    results.keep("dpo-lora-selective", OURS, {**facts, "losses": [1.1], "peak GiB": 0.5})
    assert results.cells["dpo-lora-selective"]["beside"][TRL]["share of its memory"] == 0.25
    results.begin("dpo-lora", {"layers_kept": 0})  # as it was before that was a setting
    assert set(results.cells["dpo-lora"]["sides"]) == {OURS, TRL}
    results.keep("sft-lora", TRL, {"outcome": "LacksMemory: 9 GiB"})
    results.keep("sft-lora", OURS, {"outcome": NO_TIME})  # does not take the place of what was measured
    text = write_table(Results(tmp_path).cells, tmp_path / "gpu.md")
    assert "| LacksMemory: 9 GiB |" in text
    assert NO_TIME not in text
    assert "no comparison" in text
    assert "| 50 % | 60 % |" in text
    assert "| dpo-lora-selective | trl, as above |" in text

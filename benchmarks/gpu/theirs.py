"""trl's side on a GPU: its trainers on the same token ids in the same order, set to be fast; and as unsloth replaces them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from unittest import mock
from uuid import uuid4

from benchmarks.cases import RANK
from benchmarks.gpu.cells import BETA, Cell
from benchmarks.models import draw_adapters
from benchmarks.theirs import adapters, packed, steps_seen

if TYPE_CHECKING:
    from benchmarks.cases import Work
    from benchmarks.trace import Trace, Watch

OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}
"""trl's names of ours."""


def train(cell: Cell, work: Work, watch: Watch, *, weights_dtype: str, unsloth: bool = False) -> Trace:
    """Train, and note when each step ends."""
    if unsloth:
        import_module("unsloth")  # before the libraries of which it replaces parts
    from benchmarks.gpu import flash
    from tests.oracles.trl_runs import quiet

    flash.register()
    with quiet(num_threads=None), _named_at_random(), tempfile.TemporaryDirectory() as folder:
        model = _unsloths_model(cell) if unsloth else {"model": _model(cell, weights_dtype), "peft_config": _adapters(cell)}
        watch.loaded()
        trainer = _trainer(cell, work, folder, watch, model)
        trainer.train()
        logs = trainer.step_logs
    return watch.trace([log["loss"] for log in logs], [log["grad_norm"] for log in logs])


@contextmanager
def _named_at_random() -> Iterator[None]:
    """Reference scores are named by a hash that trl makes of all weights on the host, which takes as long as the rest of a run."""
    from trl import DPOTrainer

    assert DPOTrainer, "is imported when it is asked for"
    with ExitStack() as patches:
        for module in [each for each in sys.modules.values() if "hash_module" in vars(each)]:
            patches.enter_context(mock.patch.object(module, "hash_module", return_value=uuid4().hex))
        yield


def micro_batches(cell: Cell) -> int:
    """Rows, or pairs, of a micro-batch: as many as hold our tokens, if they divide a step evenly."""
    sequences = 2 if cell.objective == "dpo" else 1
    wanted = max(1, cell.tokens_per_batch // (sequences * cell.max_length))
    return max(size for size in range(1, wanted + 1) if cell.rows_per_step % size == 0)


def batches_of(cell: Cell, work: Work) -> Iterator[list[int]]:
    """The examples of each micro-batch."""
    size = micro_batches(cell)
    for step in work.steps:
        for first in range(0, len(step), size):
            yield [example for row in step[first : first + size] for example in row]


def _trainer(cell: Cell, work: Work, folder: str, watch: Watch, model: dict[str, Any]) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOTrainer, SFTTrainer

    from tests.oracles.trl_runs import in_order

    rows, size = list(_rows(cell, work)), micro_batches(cell)
    batches = [list(range(first, first + size)) for first in range(0, len(rows), size)]
    trainer = in_order(SFTTrainer if cell.objective == "sft" else DPOTrainer, batches)(
        **model,
        args=_configuration(cell, folder),
        train_dataset=Dataset.from_list(rows),
        callbacks=[steps_seen(watch)],
    )
    trainer.remove_callback(PrinterCallback)
    draw_adapters(trainer.model.named_parameters())
    return trainer


def _adapters(cell: Cell) -> Any:
    return None if cell.method == "full" else adapters()


def _rows(cell: Cell, work: Work) -> Iterator[dict[str, list[int]]]:
    """Packed rows, or pairs, in the order of the steps."""
    from tests.oracles.trl_runs import pair

    for step in work.steps:
        for row in step:
            trees = [work.corpus[index] for index in row]
            yield packed(trees) if cell.objective == "sft" else pair(*trees)


def _model(cell: Cell, weights_dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from benchmarks.gpu import flash

    if cell.device.startswith("cuda"):
        assert flash.agrees(), "torch's varlen_attn does not say what its scaled_dot_product_attention says"
    dtype = getattr(torch, weights_dtype)
    quantized = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    model = AutoModelForCausalLM.from_pretrained(
        cell.weights,
        dtype=dtype,
        attn_implementation=flash.NAME,
        device_map={"": cell.device},
        quantization_config=BitsAndBytesConfig(**quantized) if cell.method == "qlora" else None,
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # as on our side: a CPU repacks 4-bit layers so that no gradient passes them
    return model


def _unsloths_model(cell: Cell) -> dict[str, Any]:
    """With its adapter and its tokenizer, by unsloth's loader."""
    import torch
    from unsloth import FastLanguageModel

    again, dtype = cell.checkpointing != "none", getattr(torch, cell.dtype)
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(cell.weights),
        max_seq_length=cell.max_length,
        dtype=dtype,
        load_in_4bit=cell.method == "qlora",
        full_finetuning=cell.method == "full",
        use_exact_model_name=True,
        use_gradient_checkpointing=again,
        device_map={"": cell.device},
    )
    if cell.method != "full":
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        kept = {"lora_dropout": 0, "bias": "none", "use_gradient_checkpointing": again}
        model = FastLanguageModel.get_peft_model(model, r=RANK, lora_alpha=RANK, target_modules=names, **kept)
    return {"model": model, "processing_class": tokenizer}


def _configuration(cell: Cell, folder: str) -> Any:
    """The oracle's settings, on any device."""
    from trl import DPOConfig, SFTConfig

    from tests.oracles.trl_runs import Recipe, arguments

    kind, size = (SFTConfig if cell.objective == "sft" else DPOConfig), micro_batches(cell)
    recipe = Recipe(learning_rate=cell.learning_rate, num_steps=cell.steps, num_micro_batches=cell.rows_per_step // size)
    shared = {
        **arguments(recipe, folder),
        "optim": OPTIMIZERS[cell.optimizer],
        "use_cpu": cell.device == "cpu",
        "bf16": cell.dtype == "bfloat16",
        "use_liger_kernel": cell.device != "cpu" and find_spec("liger_kernel") is not None,
        "model_init_kwargs": None,  # the model is there already
        "dataloader_pin_memory": cell.device != "cpu",
    }
    # Renamed in transformers 5.23.
    again = shared.pop("activation_checkpointing")
    assert not again, "the oracle keeps activations"
    names = {field.name for field in fields(kind)}
    shared["activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"] = cell.checkpointing != "none"
    if cell.objective == "sft":
        return SFTConfig(**{**shared, "packing": True, "max_length": cell.max_length})
    return DPOConfig(**shared, loss_type=["sigmoid"], beta=BETA, precompute_ref_log_probs=True, precompute_ref_batch_size=size)

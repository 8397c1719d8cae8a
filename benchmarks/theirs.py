"""trl's side: its trainers on the same token ids in the same order, set to be fast.

On a CPU transformers keeps the examples of a packed row apart with scaled dot-product attention,
by a (T, T) mask that it makes of the position ids, so packing is exact there (flex attention
has no backward pass, flash attention no kernel). trl's padding-free batches lie end to end in one row,
whose mask grows with its square, and its DPO pads the pairs of a batch to the longest; so rows, or
pairs, may be faster one at a time, their gradients accumulated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from benchmarks.cases import RANK
from benchmarks.models import draw_adapters
from benchmarks.workloads import MAX_LENGTH

if TYPE_CHECKING:
    from benchmarks.cases import Case, Work
    from benchmarks.trace import Trace, Watch
    from zephyr_kit.batch import Tree

PACKED, ROW_BY_ROW, PADDED = "packing", "packing, row by row", "padding"
PRECOMPUTED, PAIR_BY_PAIR, LIVE = "precomputed reference", "precomputed reference, pair by pair", "reference at every step"
SETTINGS = {"sft": (PACKED, ROW_BY_ROW, PADDED), "dpo": (PRECOMPUTED, PAIR_BY_PAIR, LIVE)}
"""The names of trl's settings for each objective."""

Batches = list[list[int]]


def train(case: Case, work: Work, setting: str, watch: Watch) -> Trace:
    """Train, and note when each step ends."""
    from tests.oracles.trl_runs import quiet

    with quiet(num_threads=None), tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(case, work, setting, folder, watch)
        trainer.train()
        logs = trainer.step_logs
    return watch.trace([log["loss"] for log in logs], [log["grad_norm"] for log in logs])


def _trainer(case: Case, work: Work, setting: str, folder: str, watch: Watch) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PrinterCallback
    from trl import DPOTrainer, SFTTrainer

    from tests.oracles.trl_runs import in_order

    model = AutoModelForCausalLM.from_pretrained(case.weights, dtype=getattr(torch, case.dtype), attn_implementation="sdpa")
    watch.loaded()
    rows, batches = _data(work, setting)
    trainer = in_order(SFTTrainer if case.objective == "sft" else DPOTrainer, batches)(
        model=model,
        args=_configuration(case, work, setting, folder, num_micro_batches=len(batches) // work.num_steps),
        train_dataset=Dataset.from_list(rows),
        peft_config=adapters() if case.method == "lora" else None,
        callbacks=[steps_seen(watch)],
    )
    trainer.remove_callback(PrinterCallback)
    draw_adapters(trainer.model.named_parameters())
    return trainer


def steps_seen(watch: Watch) -> Any:
    """A callback that notes when each step ends."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step_ended()

    return Steps()


def _data(work: Work, setting: str) -> tuple[list[dict[str, list[int]]], Batches]:
    """The rows of the data set, and the rows of each micro-batch."""
    from tests.oracles.trl_runs import demonstration, pair

    if setting in (PACKED, ROW_BY_ROW):
        rows = [packed([work.corpus[index] for index in row]) for step in work.steps for row in step]
        numbers = iter(range(len(rows)))
        steps = [[next(numbers) for _ in step] for step in work.steps]
    else:
        write = demonstration if setting == PADDED else pair
        rows = [write(work.corpus[index]) for index in range(len(work.corpus))]
        steps = [work.step(number) for number in range(work.num_steps)]
    if setting in (ROW_BY_ROW, PAIR_BY_PAIR):
        return rows, [[number] for step in steps for number in step]
    return rows, steps


def packed(trees: Sequence[Tree]) -> dict[str, list[int]]:
    """One row of trl's packer."""
    from tests.oracles.trl_runs import demonstration

    rows = [demonstration(tree) for tree in trees]
    ends = {name: list(chain.from_iterable(row[name] for row in rows)) for name in ("input_ids", "labels")}
    return {**ends, "seq_lengths": [len(row["input_ids"]) for row in rows]}


def adapters() -> Any:
    """Ours, in peft's words."""
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, lora_dropout=0.0, target_modules="all-linear")


def _configuration(case: Case, work: Work, setting: str, folder: str, *, num_micro_batches: int) -> Any:
    """The oracle's settings, with torch's fused AdamW as on our side."""
    from trl import DPOConfig, SFTConfig

    from tests.oracles.trl_runs import Recipe, arguments

    recipe = Recipe(learning_rate=case.learning_rate, num_steps=work.num_steps, num_micro_batches=num_micro_batches)
    shared = {
        **arguments(recipe, folder),
        "optim": "adamw_torch_fused",
        "model_init_kwargs": None,  # the model is there already
        "dataloader_pin_memory": False,
    }
    if case.objective == "sft":
        packing = {"packing": True, "max_length": MAX_LENGTH} if setting != PADDED else {}
        return SFTConfig(**{**shared, **packing})
    batch = len(work.steps[0]) // num_micro_batches
    return DPOConfig(
        **shared, loss_type=["sigmoid"], beta=0.1, precompute_ref_log_probs=setting != LIVE, precompute_ref_batch_size=batch
    )

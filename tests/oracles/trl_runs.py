"""trl's trainers, run on token ids that we chose, in the order that we chose.

What trl 1.16 does with such a run, read in its source and tried:

- SFTTrainer takes a dataset with `input_ids` and `labels` (-100: not trained) as it is: no
  template, no truncation (`max_length=None`), no dropping, no `map`. Without `labels` it would
  build them from `assistant_masks` and, with `completion_only_loss`, `completion_mask`.
- SFT's loss is the sum over the whole optimizer step, divided once by `num_items_in_batch`:
  the labels of all its micro-batches that are not -100, the first position not counted.
- DPOTrainer has no switch to skip its preparation (it would extract, template and tokenise
  text columns); overriding `_prepare_dataset` is enough, since its collator reads only
  `prompt_ids`, `chosen_ids`, `rejected_ids`. Every completion token is scored; there is no mask.
- DPO's loss is the mean over the pairs of a micro-batch, averaged over micro-batches.
- `label_smoothing` is read by `robust`, `exo_pair`, `aot`, `aot_unpaired` only; with `sigmoid`
  trl ignores it silently. `aot` on one pair sorts nothing and is conservative DPO, so that
  is what `trl_dpo` runs, pair by pair, when `sigmoid` is smoothed.
- `precompute_ref_log_probs` keeps the reference's log-probabilities as fp32: same numbers.
- Losses and gradient norms are logged unrounded, and are read before the update.
- The learning rate of step t (from 0) is schedule(t): with warm-up the first step has rate 0
  (but moves Adam's moments), and without it the full rate; a linear decay ends on
  `learning_rate / (num_steps - num_warmup)`, not on 0. Warm-up steps are ceil(ratio * num_steps).
- `constant` ignores warm-up; `constant_with_warmup` does not.
"""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from zephyr_kit.batch import Tree

WARNINGS = (
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)
"""What trl 1.16 on transformers 5.23 raises in these runs, as pytest's `filterwarnings` has it.

The first comes from torch's inductor, which importing trl pulls in, the second from every step of
DPOTrainer without precomputed references. (`gradient_checkpointing` in a configuration raises
a third; `activation_checkpointing` is its new name.) `quiet` silences them around import and
run, so that a test needs this list only if it uses trl itself.
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: what both sides of a comparison share. Plain AdamW, fp32, on the CPU."""

    learning_rate: float = 1e-3
    num_steps: int = 20
    batch_size: int | tuple[int, ...] = 4
    """Trees of an optimizer step, or of each step in turn."""
    num_micro_batches: int = 1
    """Equal parts that a step is accumulated from."""
    schedule: str = "constant"
    """transformers' name: constant, constant_with_warmup, linear, cosine."""
    warmup_ratio: float = 0.0
    max_grad_norm: float = 1.0
    """0: no clipping."""
    weight_decay: float = 0.0
    """The Trainer spares biases and norms."""
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    seed: int = 0
    attention: str = "sdpa"

    @property
    def num_warmup(self) -> int:
        """Steps before the full learning rate."""
        return ceil(self.warmup_ratio * self.num_steps)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left behind; the tuples have one entry per optimizer step."""

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    """Before clipping."""
    learning_rates: tuple[float, ...]
    """That the step was taken with."""
    state: Mapping[str, Tensor]
    """Final weights, fp32, under the model's own names; tied ones under both of theirs."""


def trl_sft(model: Path | str, trees: Sequence[Tree], recipe: Recipe | None = None) -> Run:
    """Train on demonstrations: mean negative log-likelihood of the trained tokens of a step."""
    rows = [demonstration(tree) for tree in trees]
    with quiet(), tempfile.TemporaryDirectory() as folder:
        from trl import SFTConfig, SFTTrainer

        recipe = recipe or Recipe()
        config = SFTConfig(**arguments(recipe, folder))
        return _run(SFTTrainer, config, model, rows, recipe)


def trl_dpo(
    model: Path | str,
    trees: Sequence[Tree],
    recipe: Recipe | None = None,
    *,
    loss_type: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    precompute_reference: bool = False,
) -> Run:
    """Train on pairs, the chosen completion first, against the model as it was; `loss_type` is trl's."""
    recipe = recipe or Recipe()
    rows = [pair(tree) for tree in trees]
    if loss_type == "sigmoid" and label_smoothing:
        loss_type, recipe = "aot", _pair_by_pair(recipe)
    assert not label_smoothing or loss_type in ("robust", "exo_pair", "aot"), f"trl ignores label_smoothing with {loss_type}"
    with quiet(), tempfile.TemporaryDirectory() as folder:
        from trl import DPOConfig, DPOTrainer

        config = DPOConfig(
            **arguments(recipe, folder),
            loss_type=[loss_type],
            beta=beta,
            label_smoothing=label_smoothing,
            precompute_ref_log_probs=precompute_reference,
            disable_dropout=True,
        )
        return _run(DPOTrainer, config, model, rows, recipe)


def demonstration(tree: Tree) -> dict[str, list[int]]:
    """The row that SFTTrainer takes as it is."""
    assert len(tree.completions) == 1, "a demonstration has one completion"
    ids = np.concatenate([tree.prompt, tree.completions[0]])
    trained = np.concatenate([np.zeros(len(tree.prompt), bool), tree.trained[0]])
    trained[:1] = False  # nothing precedes the first token
    return {"input_ids": ids.tolist(), "labels": np.where(trained, ids, -100).tolist()}


def pair(tree: Tree) -> dict[str, list[int]]:
    """The row that DPOTrainer's collator takes."""
    assert len(tree.completions) == 2, "a pair has two completions"
    assert len(tree.prompt), "trl's ipo counts a first token that nothing precedes, and cannot score it"
    assert all(flags.all() for flags in tree.trained), "trl scores every token of a completion"
    chosen, rejected = (ids.tolist() for ids in tree.completions)
    return {"prompt_ids": tree.prompt.tolist(), "chosen_ids": chosen, "rejected_ids": rejected}


def _pair_by_pair(recipe: Recipe) -> Recipe:
    """The same steps, accumulated from single pairs."""
    assert isinstance(recipe.batch_size, int), "smoothed sigmoid needs steps of one size"
    return Recipe(**{name: getattr(recipe, name) for name in recipe.__slots__} | {"num_micro_batches": recipe.batch_size})


def arguments(recipe: Recipe, folder: str) -> dict[str, Any]:
    """What both trainers' configurations share."""
    assert recipe.schedule != "constant" or not recipe.warmup_ratio, "constant ignores warm-up: constant_with_warmup"
    return {
        "output_dir": folder,
        "max_steps": recipe.num_steps,
        "per_device_train_batch_size": 1,  # unused: `_batches` decides
        "gradient_accumulation_steps": recipe.num_micro_batches,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.num_warmup,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": "adamw_torch",
        "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.betas[0],
        "adam_beta2": recipe.betas[1],
        "adam_epsilon": recipe.epsilon,
        "seed": recipe.seed,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,  # `gradient_checkpointing` is deprecated, and True in trl
        "max_length": None,
        "model_init_kwargs": {"dtype": "float32", "attn_implementation": recipe.attention},
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _batches(num_trees: int, recipe: Recipe) -> list[list[int]]:
    """Indices of each micro-batch; the trees are gone through in order, again and again."""
    sizes = (recipe.batch_size,) * recipe.num_steps if isinstance(recipe.batch_size, int) else recipe.batch_size
    assert len(sizes) == recipe.num_steps, "one batch size per step"
    batches, start = [], 0
    for size in sizes:
        part = size // recipe.num_micro_batches
        assert size == part * recipe.num_micro_batches > 0, f"{size} trees do not make {recipe.num_micro_batches} equal micro-batches"
        for _ in range(recipe.num_micro_batches):
            batches.append([index % num_trees for index in range(start, start + part)])
            start += part
    return batches


def _run(trainer_class: type, config: Any, model: Path | str, rows: list[dict[str, list[int]]], recipe: Recipe) -> Run:
    """Train, and read the logs of every step."""
    from datasets import Dataset
    from transformers import PrinterCallback

    dataset = Dataset.from_list(rows)
    trainer = in_order(trainer_class, _batches(len(rows), recipe))(model=str(model), args=config, train_dataset=dataset)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logs = trainer.step_logs
    assert len(logs) == recipe.num_steps, f"trl took {len(logs)} steps"
    state = {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
    losses, grad_norms, rates = (tuple(log[key] for log in logs) for key in ("loss", "grad_norm", "learning_rate"))
    return Run(losses, grad_norms, rates, state)


def in_order(trainer_class: Any, batches: list[list[int]]) -> Any:
    """The trainer without data preparation, with the given batches, that remembers its logs."""

    class InOrder(trainer_class):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def get_train_dataloader(self) -> Any:
            loader = torch.utils.data.DataLoader(
                self._remove_unused_columns(self.train_dataset), batch_sampler=batches, collate_fn=self.data_collator
            )
            return self.accelerator.prepare(loader)

        def log(self, logs: dict[str, float], *rest: Any, **options: Any) -> None:
            if "loss" in logs:
                self.__dict__.setdefault("step_logs", []).append(dict(logs))
            super().log(logs, *rest, **options)

        def _send_telemetry(self) -> None:
            pass

    return InOrder


@contextmanager
def quiet(*, num_threads: int | None = 1) -> Iterator[None]:
    """No network, no progress bars, `WARNINGS` silenced, one thread; all of it, and the seeds, put back after.

    One thread, because two on a busy machine wait for each other (4 s became 90) and round differently;
    None leaves as many as there are.
    """
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
    with mock.patch.dict(os.environ, offline), warnings.catch_warnings(), _seeds_kept(), _threads(num_threads):
        _silence()
        import huggingface_hub.constants
        from accelerate import state
        from datasets.utils import disable_progress_bars, enable_progress_bars
        from transformers.utils import logging

        disable_progress_bars()
        logging.disable_progress_bar()
        try:
            with mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
                yield
        finally:
            logging.enable_progress_bar()
            enable_progress_bars()
            state.AcceleratorState._reset_state(reset_partial_state=True)
            state.GradientState._reset_state()


def _silence() -> None:
    """Apply `WARNINGS`."""
    for line in WARNINGS:
        _, message, category = line.split(":")
        warnings.filterwarnings("ignore", message, {"DeprecationWarning": DeprecationWarning, "FutureWarning": FutureWarning}[category])


@contextmanager
def _seeds_kept() -> Iterator[None]:
    """The trainers seed every generator there is."""
    seeds = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(seeds[0])
            np.random.set_state(seeds[1])


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(wanted or num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)

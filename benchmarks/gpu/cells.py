"""What is measured on a GPU: objective, method, and how each is set; as the preset that a user would write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import models
from benchmarks.cases import RANK, only_stage
from benchmarks.models import SHAPES, Shape
from benchmarks.workloads import SEED

if TYPE_CHECKING:
    from zephyr_kit.preset import Stage

MAX_LENGTH = {"sft": 2048, "dpo": 1024}
RATES = {"full": 1e-6, "lora": 1e-5, "qlora": 1e-5}
BETA = 0.01


@dataclass(frozen=True)
class Kind:
    """A cell but for the model."""

    objective: str
    method: str
    tokens_per_batch: int
    optimizer: str = "adamw"
    checkpointing: str = "none"
    beside: str | None = None
    """The cell whose other sides it is compared with, instead of sides of its own."""


KINDS: Mapping[str, Kind] = {
    "sft-lora": Kind("sft", "lora", 8192),
    "dpo-lora": Kind("dpo", "lora", 8192),
    "dpo-qlora": Kind("dpo", "qlora", 8192),
    "sft-qlora": Kind("sft", "qlora", 8192),
    "sft-full": Kind("sft", "full", 8192, "adamw_8bit"),
    "dpo-full": Kind("dpo", "full", 8192, "adamw_8bit"),
    "dpo-lora-selective": Kind("dpo", "lora", 8192, checkpointing="selective", beside="dpo-lora"),
    "dpo-qlora-selective": Kind("dpo", "qlora", 8192, checkpointing="selective", beside="dpo-qlora"),
    "dpo-qlora-lean": Kind("dpo", "qlora", 1024, "paged_adamw_8bit", "block", beside="dpo-qlora"),
}
"""In the order in which they are measured; the last three show with how much less memory we can do, beside trl at its fastest."""


@dataclass(frozen=True)
class Cell:
    """What both sides train, on what, and how."""

    name: str
    model: str
    dtype: str
    device: str
    home: Path
    """The folder of models and data."""
    steps: int
    """The first of them is not timed."""
    tokens_per_step: int
    tokens_per_batch: int
    optimizer: str
    checkpointing: str
    """What is computed again in the backward pass: `none`, `block` or `selective`."""
    attention: str | None = None
    """Of our side; the preset's default unless given."""
    kernels: str | None = None
    """Likewise."""
    backend: str = "mistral"
    """Of our side."""

    @property
    def objective(self) -> str:
        """`sft` or `dpo`."""
        return KINDS[self.name].objective

    @property
    def method(self) -> str:
        """`full`, `lora` or `qlora`."""
        return KINDS[self.name].method

    @property
    def max_length(self) -> int:
        """Tokens of an example; of a prompt with one of its completions."""
        return MAX_LENGTH[self.objective]

    @property
    def rows_per_step(self) -> int:
        """Packed rows, or pairs, which have two sequences."""
        return max(1, self.tokens_per_step // self.max_length)

    @property
    def learning_rate(self) -> float:
        """Constant, without warm-up."""
        return RATES[self.method]

    @property
    def has_longer_weights(self) -> bool:
        """Whether what is trained is kept in a longer type than the model computes in."""
        return self.method == "full" and self.dtype != "float32"

    @property
    def shape(self) -> Shape:
        """The model's."""
        return SHAPES[self.model]

    @property
    def weights(self) -> Path:
        """The model's folder."""
        return models.place_of(self.model, self.dtype, self.home)

    def preset(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The preset, with this table of data."""
        model: dict[str, Any] = {"use": self.backend, "weights": str(self.weights), "dtype": self.dtype, "template": "zephyr"}
        model["activation_checkpointing"] = self.checkpointing
        model |= {key: value for key, value in (("attention", self.attention), ("kernels", self.kernels)) if value is not None}
        if self.method != "full":
            model["lora"] = {"rank": RANK, "alpha": RANK}
        if self.method == "qlora":
            model["quantize"] = {"bits": 4, "kind": "nf4"}
        train = {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "schedule": "constant",
            "tokens_per_batch": self.tokens_per_batch,
            "optimizer": self.optimizer,
            **({"examples_per_step": self.rows_per_step} if self.objective == "dpo" else {"tokens_per_step": self.tokens_per_step}),
        }
        stage = {
            "objective": {"use": "dpo", "beta": BETA} if self.objective == "dpo" else "sft",
            "data": [dict(data)],
            "max_length": self.max_length,
            "train": train,
        }
        return {"name": "benchmark", "seed": SEED, "model": model, "stages": {"train": stage}}

    def stage(self) -> Stage:
        """The preset's one stage; its data lies prepared elsewhere."""
        return only_stage(self.preset({"use": "jsonl", "path": "prepared.jsonl"}))

"""What is measured: a model, a method and a workload; as a preset, and as the steps that both sides take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks import models
from benchmarks.workloads import MAX_LENGTH, SEED, WORKLOADS

if TYPE_CHECKING:
    from zephyr_kit.batch import Tree
    from zephyr_kit.corpus import Corpus
    from zephyr_kit.preset import Stage

PAIRS_PER_STEP = 4
ROWS_PER_STEP = 4
"""Packed rows of demonstrations, of at most MAX_LENGTH tokens each."""
SPARE = 1.25
"""Rows to draw for each one needed: some are bad, and some rows come out emptier than others."""
TOKENS_OF_A_DEMONSTRATION = 400
RATES = {"full": 1e-5, "lora": 1e-4}
RANK = 16


@dataclass(frozen=True)
class Case:
    """What both sides train, on what, and how."""

    model: str
    method: str
    workload: str
    steps: int
    home: Path
    """The folder of models and data."""
    device: ClassVar[str] = "cpu"
    dtype: ClassVar[str] = "float32"

    @property
    def objective(self) -> str:
        """`sft` or `dpo`."""
        return WORKLOADS[self.workload].objective

    @property
    def learning_rate(self) -> float:
        """Constant, without warm-up."""
        return RATES[self.method]

    @property
    def weights(self) -> Path:
        """The model's folder."""
        return models.place_of(self.model, self.dtype, self.home)

    def preset(self) -> dict[str, Any]:
        """The preset that a user would write."""
        model = {"use": "mistral", "weights": str(self.weights), "dtype": self.dtype, "template": "zephyr"}
        if self.method == "lora":
            model["lora"] = {"rank": RANK, "alpha": RANK}
        train = {"steps": self.steps, "learning_rate": self.learning_rate, "schedule": "constant"}
        sizes = {"examples_per_step": PAIRS_PER_STEP} if self.objective == "dpo" else {"tokens_per_step": ROWS_PER_STEP * MAX_LENGTH}
        stage = {
            "objective": {"use": "dpo", "beta": 0.1} if self.objective == "dpo" else "sft",
            "data": [WORKLOADS[self.workload].table(self.home, self._num_rows)],
            "max_length": MAX_LENGTH,
            "bad_rows": 0.2,
            "train": {**train, **sizes},
        }
        return {"name": "benchmark", "seed": SEED, "model": model, "stages": {"train": stage}}

    def stage(self) -> Stage:
        """The preset's one stage, with all that it does not say as it is by default."""
        return only_stage(self.preset())

    @property
    def _num_rows(self) -> int:
        needed = self.steps * PAIRS_PER_STEP
        if self.objective == "sft":
            needed = math.ceil(self.steps * ROWS_PER_STEP * MAX_LENGTH / TOKENS_OF_A_DEMONSTRATION)
        return math.ceil(SPARE * needed)


def only_stage(preset: Mapping[str, Any]) -> Stage:
    """The one stage of a preset."""
    from zephyr_kit.plugins import Plugins
    from zephyr_kit.preset import resolve

    return resolve(preset, Plugins().offers, file="benchmark.toml").stages[0]


@dataclass(frozen=True)
class Work:
    """A corpus, and the examples of each step, the same for both sides.

    A step is a list of rows: trl's packed rows, or single pairs. To our engine it is a plan.
    """

    folder: Path
    steps: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def num_steps(self) -> int:
        """See `zephyr_kit.plan.Plan`."""
        return len(self.steps)

    def step(self, number: int) -> list[int]:
        """See `zephyr_kit.plan.Plan`."""
        return [example for row in self.steps[number] for example in row]

    def epoch(self, number: int) -> float:
        """See `zephyr_kit.plan.Plan`."""
        return (number + 1) / self.num_steps

    @cached_property
    def corpus(self) -> Corpus:
        """What the indices point into."""
        from zephyr_kit.corpus import Corpus

        return Corpus(self.folder)


def real_tokens(tree: Tree) -> int:
    """Tokens of an example as a model without sharing reads them."""
    return len(tree.prompt) * len(tree.completions) + sum(map(len, tree.completions))


class Silent:
    """A narrator that says nothing."""

    def say(self, text: str) -> None:
        """See `zephyr_kit.observe.Narrator`."""

    def track(self, label: str, total: int | None = None) -> Any:
        """See `zephyr_kit.observe.Narrator`."""
        from contextlib import nullcontext

        return nullcontext(lambda _: None)


def prepare(case: Case) -> tuple[Work, list[int]]:
    """Make the model and the corpus, and draw the steps; how many real tokens each has is told beside."""
    from zephyr_kit.plan import Plan
    from zephyr_kit.protocols import Start
    from zephyr_kit.stage_data import prepare_part

    models.make(case.model, case.dtype, case.home)
    stage = case.stage()
    corpus = prepare_part(stage.task, stage.task.data, stage.model.tokenizer(Start()), Silent(), "data")
    if case.objective == "sft":
        steps = packed_steps(corpus, case.steps)
    else:
        plan = Plan(corpus.lengths, SEED, examples_per_step=PAIRS_PER_STEP, steps=case.steps)
        steps = [[(index,) for index in plan.step(number)] for number in range(case.steps)]
    work = Work(corpus.folder, tuple(map(tuple, steps)))
    return work, [sum(real_tokens(corpus[index]) for index in work.step(number)) for number in range(work.num_steps)]


def packed_steps(
    corpus: Corpus, num_steps: int, *, num_rows: int = ROWS_PER_STEP, length: int = MAX_LENGTH
) -> Sequence[Sequence[tuple[int, ...]]]:
    """Rows as trl packs them (best fit, decreasing), in a random order, since it packs the longest first."""
    import numpy as np
    from datasets import Dataset, disable_progress_bars
    from trl import pack_dataset

    disable_progress_bars()
    numbers = Dataset.from_list([{"example": [index] * int(size)} for index, size in enumerate(corpus.lengths)])
    rows = [tuple(dict.fromkeys(row["example"])) for row in pack_dataset(numbers, length, "bfd")]
    order = np.random.Generator(np.random.Philox(key=[SEED, 0])).permutation(len(rows))
    assert len(rows) >= num_steps * num_rows, f"{len(rows)} rows are too few for {num_steps} steps; raise SPARE"
    return [[rows[index] for index in order[first : first + num_rows]] for first in range(0, num_steps * num_rows, num_rows)]

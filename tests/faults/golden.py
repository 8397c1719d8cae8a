"""A hundred losses of each objective, as they are checked in.

    python -m tests.faults.golden [FOLDER [STEPS]]
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

FOLDER = Path(__file__).with_name("losses")
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""Kernels that are the same on every processor."""
OBJECTIVES = ("sft", "dpo", "ipo")
STEPS = 100


def losses(name: str, model: Path, steps: int) -> list[float]:
    """Of a small model with random weights, on random tokens."""
    import torch
    from tiny import ListCorpus, random_trees
    from zkit_attentions.segments import Segments
    from zkit_mistral.backend import Lora, Mistral
    from zkit_optimizers.adamw import AdamW
    from zkit_preference.dpo import Dpo
    from zkit_preference.ipo import Ipo
    from zkit_sft.objective import Sft

    from zephyr_kit.engine import Trainer
    from zephyr_kit.feed import Feed
    from zephyr_kit.plan import Plan
    from zephyr_kit.protocols import Start
    from zephyr_kit.world import World

    objective = {"sft": Sft(), "dpo": Dpo(), "ipo": Ipo()}[name]
    backend = Mistral(weights=str(model), dtype="float32", template="zephyr", lora=Lora(rank=4, dropout=0.1), attention=Segments())
    policy = backend.load(torch.device("cpu"), start=Start(seed=1), train=True)
    policy.keep_reference()
    adamw = partial(AdamW().build, learning_rate=1e-3)
    trainer = Trainer(policy, objective, optimizer=adamw, learning_rate=lambda _: 1e-3, seed=3)
    corpus = ListCorpus(random_trees(40, completions=objective.completions, longest=20))
    feed = Feed(corpus, objective, 120, True, torch.device("cpu"), World())
    plan = Plan(corpus.lengths, 5, examples_per_step=8, epochs=None, steps=STEPS)
    return [trainer.step(feed.step(plan.step(number))).means["loss"].item() for number in range(steps)]


def write(folder: Path, steps: int) -> None:
    from tiny import write_model

    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        model = write_model(Path(place), hidden_size=16, intermediate_size=16, num_hidden_layers=1)
        for name in OBJECTIVES:
            (folder / f"{name}.txt").write_text("".join(f"{loss!r}\n" for loss in losses(name, model, steps)))


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in PORTABLE.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **PORTABLE})
    given = sys.argv[1:]
    write(Path(given[0]) if given else FOLDER, int(given[1]) if len(given) > 1 else STEPS)

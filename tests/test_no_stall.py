"""Nothing in a step waits for the device, as far as a CPU can show: no value is asked for, no tensor goes to the host or comes from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives import OBJECTIVES as EVERY_OBJECTIVE
from objectives import feed_of
from policies import CPU, PAIRS, load
from tiny import ListCorpus, TablePolicy, random_trees, write_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from zkit_attentions.dense import Dense
from zkit_mistral.backend import Lora, Quantize
from zkit_optimizers.adamw import AdamW, AdamW8bit
from zkit_preference.dpo import Dpo
from zkit_preference.ipo import Ipo
from zkit_sft.objective import Sft

from zephyr_kit.engine import Totals, Trainer
from zephyr_kit.feed import Feed, StepWork
from zephyr_kit.world import World

WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "equal", "lift_fresh"}
"""Operators that make the host wait for the device; the last copies Python's numbers to it."""
ASKING = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__")


class StallError(AssertionError):
    """The host would have waited here."""


class Hurried(TorchDispatchMode):
    """Refuses what would wait."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().partition("::")[2].partition(".")[0]
        by_mask = name in ("index", "index_put", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITING or by_mask:
            raise StallError(function)
        return function(*args, **(kwargs or {}))


@contextmanager
def hurried() -> Iterator[None]:
    def refuse(name: str, *_: Any, **__: Any) -> Any:
        raise StallError(name)

    with pytest.MonkeyPatch.context() as patch, Hurried():
        for name in ASKING:
            patch.setattr(Tensor, name, partial(refuse, name))
        yield


ASKED = [bool, torch.nonzero, torch.Tensor.unique, lambda x: x[x > 0], lambda _: torch.tensor(1.0), *map(methodcaller, ASKING[:4])]


@pytest.mark.parametrize("ask", ASKED)
def test_what_waits_is_found_out(ask: Any) -> None:
    with pytest.raises(StallError), hurried():
        ask(torch.ones(1))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "sliding_window": 6}
    return write_model(tmp_path_factory.mktemp("model"), dtype=torch.bfloat16, **shape)


OBJECTIVES = {
    "sft": (Sft(), None),
    "dpo-live": (Dpo(), "live"),
    "dpo-cached": (Dpo(label_smoothing=0.1), "cached"),
    "dpo-without": (Dpo(reference_free=True), None),
    "ipo-live": (Ipo(), "live"),
    "ipo-cached": (Ipo(), "cached"),
}
MODELS: dict[str, dict[str, Any]] = {
    "full": {"activation_checkpointing": "block"},
    "full-float32": {"dtype": "float32", "attention": Dense()},
    "lora": {"lora": Lora(rank=4, dropout=0.1), "activation_checkpointing": "selective"},
    "qlora": {"lora": Lora(rank=4, dropout=0.1), "quantize": Quantize(), "activation_checkpointing": "block"},
    "8-bit": {"lora": Lora(rank=4), "quantize": Quantize(bits=8)},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model", MODELS)
def test_a_step_waits_for_nothing(weights: Path, model: str, objective: str) -> None:
    minimised, reference = OBJECTIVES[objective]
    policy = load(weights, **{"dtype": "bfloat16", **MODELS[model]})
    factory = AdamW8bit() if model in ("lora", "8-bit") else AdamW()
    trainer = Trainer(policy, minimised, optimizer=partial(factory.build, learning_rate=1e-3), learning_rate=lambda _: 1e-3, seed=0)
    if reference == "live":
        policy.keep_reference()
    work = work_for(minimised, cached=reference == "cached")
    assert len(work.works) > 1
    trainer.step(work)  # the first makes the optimizer's state
    with hurried():
        totals = trainer.step(work)
    assert isinstance(totals, Totals)
    assert totals.means["loss"].isfinite()


@pytest.mark.parametrize("name", EVERY_OBJECTIVE)
def test_no_objective_waits(name: str) -> None:
    for objective in EVERY_OBJECTIVE[name]:
        policy = TablePolicy(vocabulary=16)
        factory = partial(AdamW().build, learning_rate=1e-3)
        trainer = Trainer(policy, objective, optimizer=factory, learning_rate=lambda _: 1e-3, seed=0)
        trees = random_trees(8, completions=objective.completions, vocabulary=16)
        work = feed_of(objective, ListCorpus(trees), 60).step(range(len(trees)))
        trainer.step(work)
        with hurried():
            trainer.step(work)


def work_for(objective: Any, *, cached: bool) -> StepWork:
    trees = PAIRS if objective.completions == 2 else random_trees(8)
    corpus: Any = ListCorpus(trees)
    scores: Any = Cached(corpus) if cached else None
    return Feed(corpus, objective, 60, True, CPU, World(), scores).step(range(len(trees)))


class Cached:
    """Reference scores that are at hand."""

    def __init__(self, corpus: Any) -> None:
        self._corpus = corpus

    def of(self, indices: Any) -> Tensor:
        return torch.full((int(self._corpus.num_targets[list(indices)].sum()),), -3.0)

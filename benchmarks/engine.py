"""The engine's own cost, and how near a step comes to the speed of bare matrix multiplications."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

from benchmarks import ours
from benchmarks.cases import Case, Work, prepare
from benchmarks.measure import apart, report
from benchmarks.models import SHAPES
from benchmarks.trace import Watch
from benchmarks.training import ALLOCATORS, PACKAGES
from benchmarks.workloads import WORKLOADS
from zephyr_kit.cache import cache_folder

MODEL_WORK = ("forward", "backward", "optimizer")
APART = (*MODEL_WORK, "clipping", "feed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured."""
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=["25m", "37m"])
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["arena", "chat"])
    parser.add_argument("--steps", type=int, default=8, help="the first is not timed (default: %(default)s)")


def run(given: argparse.Namespace) -> None:
    """Measure each workload in a fresh process, freed memory being kept."""
    home = cache_folder("benchmarks")
    rows = []
    for model, workload in itertools.product(given.model, given.workload):
        case = Case(model, "full", workload, given.steps, home)
        work, _ = apart(prepare, case, folder=home, processors=given.processors)
        figures = apart(measure, case, work, folder=home, processors=given.processors, environment=ALLOCATORS["kept"])
        rows.append({"workload": workload, "model": model, **figures})
    report("engine", rows, processors=given.processors, packages=PACKAGES)


def measure(case: Case, work: Work) -> dict[str, Any]:
    """Steps with everything that a run does, timed by parts."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, feed = ours.open_stage(case, work, Path(folder), Watch())
        parts = _steps(trainer, feed, work, Path(folder))
        arithmetic = _arithmetic(trainer, feed.step(work.step(0)))
    whole = parts.pop("whole")
    rest = whole - sum(parts.values())
    shares = {f"% {name}": round(100 * parts[name] / whole, 2) for name in APART}
    own = round(100 * (parts["feed"] + rest) / whole, 2)
    return {"seconds a step": round(whole, 3), **shares, "% rest": round(100 * rest / whole, 2), "% engine's own": own, **arithmetic}


def _steps(trainer: Any, feed: Any, work: Work, folder: Path) -> dict[str, float]:
    """Mean seconds of each part of a step but the first; batches are made in the foreground, so that they count."""
    from zephyr_kit.meter import Meter
    from zephyr_kit.metrics import MetricLog

    meter, log = Meter(num_steps=work.num_steps, epoch=work.epoch, every=0), MetricLog(folder / "metrics.jsonl")
    taken = []
    for number in range(work.num_steps):
        with _parts(trainer) as parts, _timed(parts, "whole"):
            with _timed(parts, "feed"):
                step = feed.step(work.step(number))
            log.append(report.facts() for report in meter.add(trainer.step(step)))
        taken.append(parts)
    return {name: mean(parts[name] for parts in taken[1:]) for name in (*APART, "whole")}


def _arithmetic(trainer: Any, step: Any, repeats: int = 5) -> dict[str, Any]:
    """The rate of forward and backward beside that of the same products alone."""
    from benchmarks.multiplications import Recorder, cost, cost_of_attention, rate_alone

    with _parts(trainer) as parts:
        for _ in range(repeats):
            trainer.step(step)
    with Recorder() as recorder:
        trainer.step(step)
    batches = [item.batch for item in step.works]
    attention = cost_of_attention(batches, trainer.policy.module.model.config)
    products = cost(recorder.products)
    rate = repeats * (products + attention) / (parts["forward"] + parts["backward"])
    alone = rate_alone(recorder.products)
    return {
        "G operations a step": round((products + attention) / 1e9, 1),
        "% of them attention": round(100 * attention / (products + attention), 2),
        "G operations a second": round(rate / 1e9, 1),
        "torch.mm alone": round(alone / 1e9, 1),
        "% of torch.mm's rate": round(100 * rate / alone, 1),
    }


@contextmanager
def _parts(trainer: Any) -> Iterator[Counter[str]]:
    """Seconds that go into forward, backward, optimizer and clipping."""
    import torch

    parts: Counter[str] = Counter()
    places = {
        "forward": (trainer.policy, "score"),
        "backward": (torch.autograd, "backward"),
        "optimizer": (trainer.optimizer, "step"),
        "clipping": (torch.nn.utils, "clip_grad_norm_"),
    }
    patches = [mock.patch.object(owner, name, _counted(getattr(owner, name), parts, part)) for part, (owner, name) in places.items()]
    for patch in patches:
        patch.start()
    try:
        yield parts
    finally:
        for patch in patches:
            patch.stop()


def _counted(function: Callable[..., Any], parts: Counter[str], name: str) -> Callable[..., Any]:
    def counted(*given: Any, **named: Any) -> Any:
        with _timed(parts, name):
            return function(*given, **named)

    return counted


@contextmanager
def _timed(parts: Any, name: str) -> Iterator[None]:
    begun = time.perf_counter()
    try:
        yield
    finally:
        parts[name] += time.perf_counter() - begun

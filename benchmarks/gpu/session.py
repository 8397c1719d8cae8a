"""All runs of one command, within the time that it has."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import KINDS, Cell
from benchmarks.gpu.foretold import foretell
from benchmarks.gpu.forked import Failed, LacksMemory, apart, context_of
from benchmarks.gpu.prepared import folder_of, prepare
from benchmarks.gpu.recompiled import count
from benchmarks.gpu.results import MEASURED, NO_TIME, Results
from benchmarks.gpu.runs import TRL_PAIRS, TRL_SHORT, measure, of_side, sides_of
from benchmarks.gpu.traced import trace
from benchmarks.measure import surroundings
from benchmarks.models import make
from zephyr_kit.cache import cache_folder
from zephyr_kit.cli.allocator import GROWING

PACKAGES = ("accelerate", "bitsandbytes", "datasets", "liger_kernel", "peft", "torch", "transformers", "triton", "trl", "unsloth")
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTORCH_ALLOC_CONF": GROWING,  # as `zkit run` has it; for both sides
}
COMPILED = "flex"
LAST = (TRL_PAIRS, TRL_SHORT)
"""Sides that are beside the point, and slow."""
SECONDS_OF_A_RUN = 25.0
"""With less time left, none is begun."""
SECONDS_TO_PREPARE = 600.0


@dataclass(frozen=True)
class Session:
    """What all runs share."""

    cells: Sequence[Cell]
    home: Path
    context: Any
    until: float
    """On the monotonic clock."""
    checkpointing: Sequence[str]
    """What is tried one after another where memory does not suffice, after what the cell says."""
    processors: int

    @staticmethod
    def of(given: argparse.Namespace) -> Session:
        """As the command line says."""
        home = (given.home or cache_folder("benchmarks") / "gpu").absolute()
        os.environ.update({**ENVIRONMENT, "ZKIT_CACHE": str(home / "cache")})
        cells = [_cell(name, given, home) for name in given.cell]
        tried = () if given.checkpointing else ("block",)
        return Session(cells, home, context_of(given.start), time.monotonic() + 60 * given.minutes, tried, given.processors)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def prepare(self) -> None:
        """The data of every cell, if it is not there yet."""
        for cell in self.cells:
            if not folder_of(cell).is_dir():
                self._apart("prepare", SECONDS_TO_PREPARE, prepare, cell)

    def with_weights(self) -> Session:
        """Make them on the device, if they are not there yet; with processes that import for themselves if forked ones cannot use it."""
        try:
            self._apart("weights", self.left, _make, self.cells[0])
        except Failed as error:
            if self.context.get_start_method() == "spawn":
                raise SystemExit(f"no weights: {error}") from error
            _say(f"forked processes fail: {error}; each imports for itself from here on")
            return replace(self, context=context_of("spawn")).with_weights()
        return self

    def trace(self, folder: Path) -> dict[str, Any]:
        """Of the first cell; with the chrome trace in the folder if it is small."""
        return self._told(self.cells[0], trace, folder / "gpu_trace.json.gz")

    def recompiles(self) -> dict[str, Any]:
        """Of the first cell, with attention that is compiled unless it names another."""
        cell = self.cells[0]
        return self._told(replace(cell, attention=cell.attention or COMPILED), count)

    def measure_all(self, sides: Sequence[str], results: Results) -> None:
        """Every run, the plan's figures meanwhile; what fails is written down, and the others go on."""
        for cell in self.cells:
            results.begin(cell.name, {**_settings(cell), "on": self._card})
        with ThreadPoolExecutor(2) as pool:
            plans = {cell.name: pool.submit(self._apart, f"{cell.name}-plan", self.left, foretell, cell) for cell in self.cells}
            for cell, side in self._runs(sides):
                results.keep(cell.name, side, self._measured(cell, side))
                _keep_plans(plans, results)
            for future in plans.values():
                future.exception()
            _keep_plans(plans, results)

    def _runs(self, sides: Sequence[str]) -> Iterator[tuple[Cell, str]]:
        """Both sides of a cell one after the other; what is beside the point comes last."""
        for cell in self.cells:
            yield from ((cell, side) for side in sides if side not in LAST and side in sides_of(cell))
        for side in (side for side in sides if side in LAST):
            yield from ((cell, side) for cell in self.cells if side in sides_of(cell))

    def _measured(self, cell: Cell, side: str) -> dict[str, Any]:
        """The facts of a run, or why there are none; with less kept of the activations where memory does not suffice."""
        outcome = NO_TIME
        for checkpointing in dict.fromkeys((cell.checkpointing, *self.checkpointing)):
            tried = of_side(replace(cell, checkpointing=checkpointing), side)
            if self.left < SECONDS_OF_A_RUN:
                break
            _say(f"{cell.name}, {side}, {checkpointing}: {self.left:.0f} s left")
            begun = time.monotonic()
            try:
                facts = self._apart(f"{cell.name}-{side}", self.left, measure, tried, side)
            except LacksMemory as error:
                outcome = str(error)
            except Failed as error:
                return {"outcome": str(error)}
            else:
                _say(f"  {facts['real tokens a second']:,.0f} real tokens a second, {facts['peak GiB']} GiB")
                took = {"seconds in all": round(time.monotonic() - begun, 1)}
                told = {"surroundings": surroundings(self.processors, PACKAGES)}
                return {"outcome": MEASURED, "settings": _in_words(tried), **facts, **took, **told}
        return {"outcome": outcome}

    @property
    def _card(self) -> str:
        told = surroundings(self.processors, ())
        return str(told["gpu"] if self.cells[0].device != "cpu" and "gpu" in told else told["processor"])

    def _told(self, cell: Cell, work: Callable[..., Any], *given: Any) -> dict[str, Any]:
        """What comes of a look at a cell, with all that it depends on; or why nothing does."""
        try:
            facts = self._apart(f"{cell.name}-{work.__name__}", self.left, work, cell, *given)
        except Failed as error:
            facts = {"outcome": str(error)}
        settings = {"cell": cell.name, "settings": _settings(cell)}
        return {**settings, **facts, "surroundings": surroundings(self.processors, PACKAGES)}

    def _apart(self, name: str, seconds: float, work: Callable[..., Any], *given: Any) -> Any:
        log = self.home / "logs" / f"{name.replace(', ', '-').replace(' ', '-')}.txt"
        return apart(self.context, log, seconds, work, *given)


def _make(cell: Cell) -> None:
    """Touches the device, if only to see that it can be used."""
    import torch

    torch.zeros(1, device=cell.device)
    make(cell.model, cell.dtype, cell.home, cell.device)


def _cell(name: str, given: argparse.Namespace, home: Path) -> Cell:
    kind = KINDS[name]
    return Cell(
        name,
        given.model,
        given.dtype,
        given.device,
        home,
        given.steps + 1,
        given.tokens_per_step,
        given.tokens_per_batch or kind.tokens_per_batch,
        given.optimizer or kind.optimizer,
        given.checkpointing or kind.checkpointing,
        given.attention,
        given.kernels,
    )


def _settings(cell: Cell) -> dict[str, Any]:
    """What tells a cell from one of the same name."""
    return {name: value for name, value in vars(cell).items() if name not in ("name", "home")}


def _in_words(cell: Cell) -> str:
    kept = {"none": "activations kept", "block": "blocks computed again", "selective": "cheap parts computed again"}
    return f"{cell.optimizer}, {cell.tokens_per_batch:,} tokens a batch, {kept[cell.checkpointing]}"


def _keep_plans(plans: dict[str, Future[Any]], results: Results) -> None:
    for name, future in list(plans.items()):
        if future.done():
            error = plans.pop(name).exception()
            results.foretold(name, {"outcome": str(error)} if error else future.result())


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201

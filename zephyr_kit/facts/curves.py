"""`metrics.jsonl` as columns of figures: whole and exact, or quickly, from lines spread over the file."""

from __future__ import annotations

import itertools
import json
import math
import mmap
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zephyr_kit.metrics import HELD_OUT

Column = Sequence[float | None]
"""Figures in the order of the steps; None where there is none that is finite."""
COUNTED = ("num_tokens", "num_targets", "skipped", "rows", "wait_seconds")
"""Keys of a line that are added up or listed, and are no curve."""
LINES_TO_A_LOOK = 4
"""Looks at held-out data are fewer than steps, and smoother, but take longer to find."""
BYTES_OF_A_LINE = 250
"""About; a file of fewer lines than are wanted is read whole."""
STEP = re.compile(rb'"step": (\d+)')


@dataclass(frozen=True, slots=True)
class Skip:
    """A step that changed no weight, for its loss or gradient was not finite."""

    step: int
    loss: str
    rows: tuple[str, ...] = ()
    """Where its rows stand."""


@dataclass(frozen=True, slots=True)
class Curves:
    """The figures of a stage's steps, and of its looks at held-out data.

    All columns of `steps` are of one length, as are those of `held_out`; `step` is among either. Those of `steps` have
    `epoch`, and what was spent up to a step: `tokens` that the model read, and `seconds` in steps.
    """

    steps: Mapping[str, Column] = field(default_factory=dict)
    held_out: Mapping[str, Column] = field(default_factory=dict)
    num_steps: int = 0
    """The last step that has a line."""
    tokens: int = 0
    """That the model read in all steps."""
    targets: int = 0
    """That it was trained on."""
    seconds: float = 0.0
    """In steps: without loading, looks at held-out data, and checkpoints."""
    wait_shares: tuple[float, ...] = ()
    """By rank, the part of these that it waited for the others; empty where that was not measured."""
    skips: tuple[Skip, ...] = ()
    damaged: tuple[int, ...] = ()
    """Numbers of lines that cannot be read."""
    exact: bool = True
    """Whether every line was read; sums are estimates where not, and only some skipped steps are seen."""

    def last(self, name: str) -> float | None:
        """The newest value of a column, of the held-out data after `held_out/`; None if there is none."""
        columns = self.held_out if name.startswith(HELD_OUT) else self.steps
        column = columns.get(name.removeprefix(HELD_OUT), ())
        return next((value for value in reversed(column) if value is not None), None)


def read_curves(path: Path, *, most: int = 1000, whole: bool = True, looks_every: int | None = None) -> Curves:
    """Read a metrics file, `most` steps of it at the most (at least 2); a file that is not there has no steps.

    With `whole` every line is read, for exact sums. Without, only lines spread over the file are, and after every so many
    steps (`looks_every`) the look at held-out data is searched for: a file of any size takes a few milliseconds.
    """
    try:
        if whole or path.stat().st_size < most * BYTES_OF_A_LINE:
            return _curves(*_parsed(path.read_bytes().split(b"\n")[:-1]), most=most)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _estimated(_curves(*_parsed(_spread(data, most, looks_every)), most=most))
    except FileNotFoundError:
        return Curves()


def _parsed(texts: Iterable[bytes]) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines, and the numbers of those that are none."""
    texts = list(texts)
    try:
        found = _loads(b"[" + b",".join(texts) + b"]")  # in one go, which takes half as long
    except ValueError:
        found = [_line(text) for text in texts]
    whole = [isinstance(line, dict) and isinstance(line.get("step"), int) for line in found]
    return list(itertools.compress(found, whole)), [number for number, fine in enumerate(whole, 1) if not fine]


def _line(text: bytes) -> Any:
    try:
        return _loads(text)
    except ValueError:
        return None


def _loads(text: bytes) -> Any:
    return json.loads(text.decode("utf-8", "replace"), parse_constant=str)


def _curves(lines: Sequence[dict[str, Any]], damaged: Sequence[int], *, most: int) -> Curves:
    steps = [line for line in lines if "loss" in line]
    looks = [line for line in lines if "loss" not in line]
    tokens, seconds = (list(itertools.accumulate(map(spend, steps))) for spend in (_tokens, _seconds))
    kept = _evenly(len(steps), most)
    spent = {"tokens": [tokens[place] for place in kept], "seconds": [seconds[place] for place in kept]}
    columns: dict[str, Column] = {**_columns([steps[place] for place in kept], without=COUNTED), **spent} if steps else {}
    return Curves(
        columns,
        {name.removeprefix(HELD_OUT): column for name, column in _columns(looks).items()},
        max((int(line["step"]) for line in steps), default=0),
        int(tokens[-1]) if steps else 0,
        sum(int(line.get("num_targets", 0)) for line in steps),
        seconds[-1] if steps else 0.0,
        _wait_shares(steps),
        tuple(Skip(line["step"], str(line["loss"]), tuple(line.get("rows", ()))) for line in steps if line.get("skipped")),
        tuple(damaged),
    )


def _columns(lines: Sequence[Mapping[str, Any]], without: Sequence[str] = ()) -> dict[str, list[float | None]]:
    names = [name for name in dict.fromkeys(itertools.chain.from_iterable(lines)) if name not in without]
    # What is not finite was written as a text.
    return {name: [value if type(value := line.get(name)) in (int, float) else None for line in lines] for name in names}


def _tokens(line: Mapping[str, Any]) -> float:
    return float(line.get("num_tokens", 0))


def _seconds(line: Mapping[str, Any]) -> float:
    speed = line.get("tokens_per_second", 0)
    return _tokens(line) / speed if speed else 0.0


def _wait_shares(steps: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    known = [line for line in steps if isinstance(line.get("wait_seconds"), list)]
    seconds = sum(map(_seconds, known))
    by_rank = itertools.zip_longest(*(line["wait_seconds"] for line in known), fillvalue=0.0)
    return tuple(sum(waits) / seconds for waits in by_rank) if seconds else ()


def _evenly(count: int, most: int) -> list[int]:
    """So many places of `count`, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def _spread(data: mmap.mmap, most: int, looks_every: int | None) -> Iterator[bytes]:
    """Whole lines, spread evenly, and those of held-out data, in order."""
    size = data.rfind(b"\n") + 1
    final = data.rfind(b"\n", 0, max(0, size - 1)) + 1
    before = data.rfind(b"\n", 0, max(0, final - 1)) + 1  # the step that the final look was taken after, if that is one
    begins = {before, final, *(_line_at(data, place * size // most, size) for place in range(most))}
    if looks_every:
        last = _step_at(data, final, size)
        stride = looks_every * max(1, math.ceil(last / looks_every / (most / LINES_TO_A_LOOK)))
        newest = last // looks_every * looks_every
        begins.update(_last_of_step(data, step, size) for step in (*range(stride, newest, stride), newest))
    for begin in sorted(begins - {size}):
        yield data[begin : data.find(b"\n", begin)]


def _line_at(data: mmap.mmap, place: int, size: int) -> int:
    """Where the first line begins that does so at `place` or after it; `size` if there is none."""
    return min(size, data.find(b"\n", place - 1) + 1) if place else 0


def _step_at(data: mmap.mmap, begin: int, size: int) -> int:
    """The step of the line that begins there; more than any where none does."""
    found = STEP.search(data, begin, min(size, begin + 100))
    return int(found[1]) if found else size if begin >= size else 0


def _last_of_step(data: mmap.mmap, step: int, size: int) -> int:
    """Where the last line of a step begins: that of the look at held-out data, if there was one after it."""
    after = bisect_left(range(size), step + 1, key=lambda place: _step_at(data, _line_at(data, place, size), size))
    return data.rfind(b"\n", 0, max(0, _line_at(data, after, size) - 1)) + 1


def _estimated(curves: Curves) -> Curves:
    """Sums over some of the steps, as they would be over all."""
    steps = curves.steps.get("step", ())
    factor = curves.num_steps / max(1, len(steps))
    spent = {name: [value * factor for value in curves.steps[name] if value is not None] for name in ("tokens", "seconds") if steps}
    return replace(
        curves,
        steps={**curves.steps, **spent},
        tokens=round(curves.tokens * factor),
        targets=round(curves.targets * factor),
        seconds=curves.seconds * factor,
        exact=False,
    )

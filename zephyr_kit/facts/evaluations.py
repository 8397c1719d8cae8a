"""What suites have found, from JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from zephyr_kit.evaluations import FOLDER, RESULT, read_evaluation
from zephyr_kit.facts.files import Complain, read_table
from zephyr_kit.protocols import Evaluation


def readable(found: Any, where: str, complain: Complain) -> list[Evaluation]:
    """Those of a list from JSON that can be read; the others are told."""
    read: list[Evaluation] = []
    if not isinstance(found, list):
        complain(f"{where}: holds no list of evaluations")
        return read
    for one in found:
        try:
            read.append(read_evaluation(one))
        except (AttributeError, TypeError, ValueError) as error:
            complain(f"{where}: an evaluation cannot be read: {error}")
    return read


def measured_since(run: Path, others: Iterable[Evaluation], complain: Complain) -> list[Evaluation]:
    """What `zkit evaluate` has found of a run; the folder's name is added where a title alone would not tell it from `others`."""
    return told_by_place(list(_measured(run, complain)), others)


def told_by_place(found: Sequence[tuple[str, Sequence[Evaluation]]], others: Iterable[Evaluation] = ()) -> list[Evaluation]:
    """Evaluations by the name of their place, which is added where a title alone would not tell one from the rest, or from `others`."""
    titles = Counter(one.title for one in (*others, *(one for _, ones in found for one in ones)))
    return [one if titles[one.title] == 1 else replace(one, title=f"{one.title} ({name})") for name, ones in found for one in ones]


def _measured(run: Path, complain: Complain) -> Iterator[tuple[str, Sequence[Evaluation]]]:
    for file in sorted((run / FOLDER).glob(f"*/{RESULT}")):
        where = f"{FOLDER}/{file.parent.name}"
        table = read_table(file, partial(_complain_of, where, complain))
        if table is not None:
            yield file.parent.name, readable(table.get("evaluations"), f"{where}/{RESULT}", complain)


def _complain_of(where: str, complain: Complain, text: str) -> None:
    complain(f"{where}/{text}")

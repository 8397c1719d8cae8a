"""How fast dialogues pass all filters, and in how much memory."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import dialogues
from benchmarks.measure import apart, processor_seconds, report, timed, watched

SIZES = (10_000, 200_000)
FILTERS: tuple[Any, ...] = (
    "truecase",
    "disclaimers",
    {"use": "length", "min_words": 50, "max_words": 4000, "min_turns": 2},
    "language",
    {"use": "decontaminate", "against": ["mt_bench_questions", "math_gsm8k_test"]},
    "near_duplicates",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much of it."""
    parser.add_argument("--dialogues", type=int, nargs="+", default=SIZES, metavar="N", help="how many; a measurement for each number")


def run(given: argparse.Namespace) -> None:
    """Write dialogues, let them pass, tell."""
    rows = []
    for size in given.dialogues:
        with tempfile.TemporaryDirectory(prefix="zkit-filters-") as folder:
            path = dialogues.write(Path(folder), size)
            rows.append(apart(measure, path, size, folder=Path(folder), processors=given.processors))
    report("filters", rows, processors=given.processors)


def measure(path: Path, size: int) -> dict[str, Any]:
    """One size."""
    portion = _portion(path)
    with watched() as peak:
        seconds, sifted = timed(portion.sift)
    held = sum(file.stat().st_size for file in sifted.folder.rglob("*") if file.is_file())
    counts = {f"{tally['name']}: removed, changed": f"{tally['removed']:,}, {tally['changed']:,}" for tally in sifted.ledger["filters"]}
    return {
        "dialogues": size,
        "seconds": round(seconds, 1),
        "dialogues a minute": round(60 * size / seconds),
        "processor seconds": processor_seconds(),
        **peak.facts(),
        "MiB of text read": round(path.stat().st_size / 2**20),
        "MiB kept on disk": round(held / 2**20),
        "left": sifted.ledger["kept"],
        **counts,
    }


def _portion(path: Path) -> Any:
    """What a preset's `data` table would give."""
    from zephyr_kit.config import Builder
    from zephyr_kit.plugins import Plugins
    from zephyr_kit.portion import Portion

    table = {"use": "jsonl", "path": str(path), "filters": [_filter(each) for each in FILTERS]}
    return Builder(Plugins().offers, __file__).convert(Portion, table, "data")


def _filter(table: Any) -> Any:
    if not isinstance(table, Mapping) or "against" not in table:
        return table
    paths = (dialogues.shared() / "data" / f"{name}.jsonl.gz" for name in table["against"])
    return {**table, "against": [{"use": "jsonl", "path": str(path), "format": "any_text"} for path in paths]}

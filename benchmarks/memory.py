"""Peak memory as `zkit plan` foretells it, and as a fresh `zkit run` has it, on a CPU."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import models
from benchmarks.dialogues import shared
from benchmarks.measure import ZKIT, apart, report
from zephyr_kit.cache import cache_folder
from zephyr_kit.sizes import GIB

TRAINED = {
    "full": "",
    "lora": "lora = { rank = 16, alpha = 16 }",
    "qlora": 'lora = { rank = 16, alpha = 16 }\nquantize = { bits = 4, kind = "nf4" }',
}
STAGES = {
    "sft": """objective = "sft"
data = [{{ use = "jsonl", path = "{data}/chat_sgd.jsonl.gz", limit = 60 }}]""",
    "dpo": """objective = {{ use = "dpo", beta = 0.1 }}
bad_rows = 0.2
data = [{{ use = "ultrafeedback", path = "{data}/feedback_arena.jsonl.gz", limit = 40, binarise = {{ rule = "best_random" }} }}]""",
}
PRESET = """name = "memory"
[model]
use = "mistral"
weights = "{weights}"
dtype = "float32"
template = "zephyr"
{trained}
[stages.it]
{stage}
max_length = 1024
train = {{ steps = 2, examples_per_step = 16, learning_rate = 1e-4, tokens_per_batch = 4096, checkpoint_every = 2 }}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of which models."""
    parser.add_argument("--model", nargs="+", choices=models.SHAPES, default=["37m", "160m"])
    parser.add_argument("--runs", type=int, default=3, help="what is measured is the median of so many (default: %(default)s)")


def run(given: argparse.Namespace) -> None:
    """Plan and run every combination, tell."""
    rows = []
    home = cache_folder("benchmarks")
    with tempfile.TemporaryDirectory(prefix="zkit-memory-") as folder:
        for model, stage, trained in itertools.product(given.model, STAGES, TRAINED):
            weights = apart(models.make, model, "float32", home, folder=home, processors=given.processors)
            text = PRESET.format(weights=weights, trained=TRAINED[trained], stage=STAGES[stage].format(data=shared() / "data"))
            facts = {"model": model, "stage": stage, "trained": trained}
            rows.append(measure(Path(folder) / f"{model}-{stage}-{trained}", text, facts, given.processors, given.runs))
            print(json.dumps(rows[-1]), flush=True)  # noqa: T201
    names = dict.fromkeys(name for row in rows for name in row)
    report("memory", [{name: row.get(name, 0.0) for name in names} for row in rows], processors=given.processors)


def measure(folder: Path, text: str, facts: Mapping[str, Any], processors: int, runs: int = 1) -> dict[str, Any]:
    """One combination: the plan's figure, and the peaks of processes that train."""
    folder.mkdir()
    foretold, peaks = apart(_plan_and_runs, folder, text, runs, folder=folder, processors=processors)
    measured = median(peaks)
    parts = {f"GiB, {name}": round(size / GIB, 3) for name, size in foretold["by_part"].items()}
    spread = {"least GiB": round(min(peaks) / GIB, 3), "most GiB": round(max(peaks) / GIB, 3)}
    totals = {"foretold GiB": round(foretold["peak"] / GIB, 3), "measured GiB": round(measured / GIB, 3), **spread}
    return {**facts, **totals, "foretold / measured": round(foretold["peak"] / measured, 3), **parts}


def _plan_and_runs(folder: Path, text: str, runs: int) -> tuple[dict[str, Any], list[int]]:
    """Called in a small process: Linux counts what a process had before it became another one."""
    preset = folder / "memory.toml"
    preset.write_text(text, "utf-8")
    told = subprocess.run([ZKIT, "plan", str(preset), "--json"], capture_output=True, check=True, text=True)  # noqa: S603
    return json.loads(told.stdout)["stages"][0]["bytes"], [_peak(preset, folder / f"run-{number}") for number in range(runs)]


def _peak(preset: Path, output: Path) -> int:
    """Bytes that a run, to which nothing is known from before, had resident at its highest."""
    told, environment = output.with_suffix(".txt"), {**os.environ, "ZKIT_CACHE": str(output.with_suffix(".cache"))}
    with told.open("w") as out:
        command = [ZKIT, "run", str(preset), "--output", str(output)]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)  # noqa: S603
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(told.read_text())
    return usage.ru_maxrss * 1024

"""Peak memory as `zkit plan` foretells it, and as a fresh `zkit run` has it, on a CPU."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.dialogues import shared
from benchmarks.measure import report

SHAPES = {
    37: {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2},
    160: {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4},
}
"""By millions of parameters; 32,000 tokens, embeddings not tied."""
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
ZKIT = (sys.executable, "-c", "from zephyr_kit.cli import main; main()")
GIB = 2**30


def run(sizes: tuple[int, ...], processors: int) -> None:
    """Plan and run every combination, tell."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="zkit-memory-") as folder:
        for size, stage, trained in itertools.product(sizes, STAGES, TRAINED):
            weights = _weights(Path(folder) / f"model-{size}", SHAPES[size])
            text = PRESET.format(weights=weights, trained=TRAINED[trained], stage=STAGES[stage].format(data=shared() / "data"))
            rows.append(measure(Path(folder) / f"{size}-{stage}-{trained}", text, {"millions": size, "stage": stage, "trained": trained}))
            print(json.dumps(rows[-1]), flush=True)  # noqa: T201
    names = dict.fromkeys(name for row in rows for name in row)
    report("memory", [{name: row.get(name, 0.0) for name in names} for row in rows], processors=processors)


def measure(folder: Path, text: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """One combination: the plan's figure, and the peak of a process that trains."""
    folder.mkdir()
    preset = folder / "memory.toml"
    preset.write_text(text, "utf-8")
    told = subprocess.run([*ZKIT, "plan", str(preset), "--json"], capture_output=True, check=True, text=True, env=_surroundings(folder))  # noqa: S603
    foretold = json.loads(told.stdout)["stages"][0]["bytes"]
    measured = _peak([*ZKIT, "run", str(preset), "--output", str(folder / "run")], folder)
    parts = {f"GiB, {name}": round(size / GIB, 3) for name, size in foretold["by_part"].items()}
    totals = {"foretold GiB": round(foretold["peak"] / GIB, 3), "measured GiB": round(measured / GIB, 3)}
    return {**facts, **totals, "foretold / measured": round(foretold["peak"] / measured, 3), **parts}


def _peak(command: list[str], folder: Path) -> int:
    """Bytes that a process had resident at its highest."""
    with (folder / "told.txt").open("w") as told:
        process = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT, env=_surroundings(folder))  # noqa: S603
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit((folder / "told.txt").read_text())
    return usage.ru_maxrss * 1024


def _surroundings(folder: Path) -> dict[str, str]:
    return {**os.environ, "ZKIT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _weights(folder: Path, shape: Mapping[str, int]) -> Path:
    """A random model of this shape with the Mistral tokenizer; written once."""
    if not folder.exists():
        import torch
        from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

        tokenizer = AutoTokenizer.from_pretrained(shared() / "models" / "mistral-7b-v0.1-tokenizer")
        torch.manual_seed(0)
        MistralForCausalLM(MistralConfig(**shape, vocab_size=32_000, sliding_window=None)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder

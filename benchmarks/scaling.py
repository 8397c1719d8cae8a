"""A 70 B model on 64 devices, simulated: the real step on tensors without data, in a process group that is not there.

Memory and messages are what the code asks for; the speeds that follow are a model's, and are told apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import apart, report
from zephyr_kit.sizes import GIB

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
MARKS = "<!-- simulated -->", "<!-- end -->"
SHAPE = {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
"""Llama 2's and 3's 70 B, with Mistral's vocabulary: 68.7 billion weights."""
TOKENS, PER_MACHINE = 8192, 8
TOKENS_PER_STEP = 524_288
INSIDE, BETWEEN = 450e9, 50e9
"""Bytes a second that a device sends: NVLink 4 inside a machine, 400 Gbit/s InfiniBand between machines, by datasheet."""
ARITHMETIC, MESSAGES, STEP = "s of arithmetic", "s of messages", "s a step of 524,288 tokens"
CASES = {
    "full, sharded": ("", False),
    "full, hybrid": ("", True),
    "LoRA on a sharded base": ("lora", False),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """On how many devices."""
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])


def run(given: argparse.Namespace) -> None:
    """Simulate every case on every number of devices, and write the tables into the document."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            for count in given.devices:
                facts = apart(simulate, case, count, given.layers, folder=Path(folder), processors=given.processors)
                rows.append({"case": case, "devices": count, **facts, **modelled(facts, count, hybrid=CASES[case][1])})
                print(json.dumps(rows[-1]), flush=True)  # noqa: T201
    names = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name, 0.0) for name in names} for row in rows]
    report("scaling", rows, processors=given.processors, packages=("torch", "transformers"))
    if given.layers == SHAPE["num_hidden_layers"]:
        _write(rows)


def simulate(case: str, count: int, layers: int) -> dict[str, Any]:
    """One batch of 8,192 tokens of SFT, four dialogues of 2,048, with activations computed again by block, and the update after it."""
    import numpy as np
    from zkit_attentions.segments import Segments
    from zkit_mistral.backend import Lora, Mistral
    from zkit_optimizers.adamw import AdamW
    from zkit_sft.objective import Sft

    from zephyr_kit.batch import Tree
    from zephyr_kit.pretended import pretended_mesh
    from zephyr_kit.protocols import Start
    from zephyr_kit.rehearsal import PlannedStep, rehearse

    adapter, hybrid = CASES[case]
    lora = Lora(rank=16, alpha=16) if adapter else None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": layers}), "utf-8")
        backend = Mistral(
            weights=folder, dtype="bfloat16", template="zephyr", attention=Segments(), activation_checkpointing="block", lora=lora
        )
        size = TOKENS // 4 - 1
        tree = Tree(np.zeros(1, np.int32), (np.zeros(size, np.int32),), (np.ones(size, bool),))
        planned = PlannedStep(backend, Start(), Sft(), AdamW(), (tree,) * 4)
        sharing, machines = (min(count, PER_MACHINE), max(1, count // PER_MACHINE)) if hybrid else (count, None)
        with pretended_mesh(sharing, machines=machines) as mesh:
            rehearsal = rehearse(planned, mesh)
    parts = {f"GiB, {name}": round(size / GIB, 2) for name, size in rehearsal.training.items() if size}
    return {
        **parts,
        "GiB, in all": round(sum(rehearsal.training.values()) / GIB, 2),
        "TFLOP": round(rehearsal.flops / 1e12, 1),
        "messages": {name: [number, round(size / GIB, 2)] for name, (number, size) in rehearsal.messages.items()},
    }


def modelled(facts: Mapping[str, Any], count: int, *, hybrid: bool) -> dict[str, float]:
    """Seconds of a step, if messages go beside the arithmetic: the longer of both.

    A gather or reduction over n devices sends (n - 1) / n of the whole from each; over machines, the slower link sets the pace.
    """
    from zephyr_kit.devices import named_device

    batches = TOKENS_PER_STEP / TOKENS / count
    compute = batches * facts["TFLOP"] * 1e12 / named_device("h100-80").tabled_rate
    sent = sum(
        size * GIB * (min(count, PER_MACHINE) - 1) / min(count, PER_MACHINE) / INSIDE
        if hybrid or count <= PER_MACHINE
        else size * GIB * (count - 1) / count / BETWEEN
        for name, (_, size) in facts["messages"].items()
        if name != "allreduce"
    )
    if hybrid and count > PER_MACHINE:  # gradients of each device's share, between machines
        sent += sum(size * GIB / BETWEEN for name, (_, size) in facts["messages"].items() if name == "allreduce")
    return {ARITHMETIC: round(compute, 2), MESSAGES: round(batches * sent, 2), STEP: round(max(compute, batches * sent), 2)}


def _write(rows: Sequence[Mapping[str, Any]]) -> None:
    """Put the tables between the marks of the document."""
    before, _, rest = DOCUMENT.read_text("utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n{_simulated(rows)}\n{MARKS[1]}{after}", "utf-8")


def _simulated(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = list(dict.fromkeys(key for row in rows for key in row if key.startswith("GiB, ") and key != "GiB, in all"))
    lines = ["Simulated: what the code asks for.", ""]
    lines += _table(
        ["", "devices", *(part.removeprefix("GiB, ") for part in parts), "GiB a device", "messages a batch"],
        [
            [row["case"], row["devices"], *(row.get(part, 0.0) for part in parts), f"**{row['GiB, in all']}**", _told(row["messages"])]
            for row in rows
        ],
    )
    lines += ["", "Modelled: from those messages and datasheets.", ""]
    lines += _table(
        ["", "devices", ARITHMETIC, MESSAGES, STEP],
        [[row["case"], row["devices"], row[ARITHMETIC], row[MESSAGES], f"**{row[STEP]}**"] for row in rows],
    )
    return "\n".join(lines)


def _told(messages: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{number} {name.removesuffix('_base')} ({size:,} GiB)" for name, (number, size) in messages.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    return [f"| {' | '.join(map(str, cells))} |" for cells in (head, ["---"] * len(head), *rows)]

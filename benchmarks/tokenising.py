"""How long it takes to tokenise and pack dialogues, once, and to find them again."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import dialogues
from benchmarks.measure import apart, processor_seconds, report, timed, watched

SIZES = (200_000,)
MAX_LENGTH, TOKENS_PER_STEP, TOKENS_PER_BATCH = 2048, 131_072, 16_384


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much of it."""
    parser.add_argument("--dialogues", type=int, nargs="+", default=SIZES, metavar="N", help="how many; a measurement for each number")


def run(given: argparse.Namespace) -> None:
    """Write dialogues, tokenise and plan, twice, tell."""
    rows = []
    for size in given.dialogues:
        with tempfile.TemporaryDirectory(prefix="zkit-tokenising-") as folder:
            path = dialogues.write(Path(folder), size)
            first, again = (apart(measure, path, folder=Path(folder), processors=given.processors) for _ in range(2))
            repeated = {f"{name}, second time": again[name] for name in ("seconds to prepare", "seconds to plan and pack")}
            rows.append({"dialogues": size, **first, **repeated})
    report("tokenising", rows, processors=given.processors)


def measure(path: Path) -> dict[str, Any]:
    """Corpus, plan and batches of one epoch, from a cold start or with the cache that is there."""
    with watched() as peak:
        seconds, corpus = timed(lambda: _corpus(path))
        seconds_to_plan, num_batches = timed(lambda: _num_batches(corpus))
    tokens = int(corpus.lengths.sum())
    return {
        "tokens a dialogue": round(tokens / len(corpus)),
        "longer than max_length": corpus.ledger["cut"],
        "seconds to prepare": round(seconds, 2),
        "seconds to plan and pack": round(seconds_to_plan, 2),
        "tokens a second": round(tokens / seconds),
        "processor seconds": processor_seconds(),
        "batches": num_batches,
        "filled": round(tokens / (num_batches * TOKENS_PER_BATCH), 4),
        **peak.facts(),
    }


def _corpus(path: Path) -> Any:
    from zkit_mistral.tokenizer import open_tokenizer
    from zkit_sources.files import Jsonl

    from zephyr_kit.admission import Door
    from zephyr_kit.cache import cache_folder
    from zephyr_kit.corpus import prepare
    from zephyr_kit.portion import Portion

    tokenizer = open_tokenizer(str(dialogues.shared() / "models" / "mistral-7b-v0.1-tokenizer"), template="zephyr")
    return prepare([Portion(Jsonl(str(path)))], tokenizer, Door(1, MAX_LENGTH, "cut"), cache=cache_folder("corpora"))


def _num_batches(corpus: Any) -> int:
    from zephyr_kit.plan import Plan, pack

    plan = Plan(corpus.lengths, 42, tokens_per_step=TOKENS_PER_STEP)
    lengths = corpus.row_lengths(share_prompts=True)
    return sum(len(pack(plan.step(number), lengths, TOKENS_PER_BATCH)) for number in range(plan.num_steps))

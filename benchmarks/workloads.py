"""What is trained on: real dialogues and pairs, pairs cut from dialogues, and pairs of drawn lengths, as tables of a preset."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.dialogues import Turns, shared

Row = dict[str, Any]

MAX_LENGTH = 1024
SEED = 7
NUM_LOOKED_AT = 1000
"""Dialogues that multi-turn pairs are cut from."""
PROMPT, CHOSEN, REJECTED = (math.log(110), 1.1), (math.log(260), 0.7), (math.log(230), 0.8)
"""UltraFeedback's lengths in tokens: mean and deviation of the logarithm."""
MAX_PROMPT, MIN_PROMPT = 512, 8
AROUND_PROMPT, AROUND_REPLY = 22, 1
"""Tokens that the template writes around the words."""


@dataclass(frozen=True)
class Workload:
    """Data of a kind."""

    objective: str
    path: Callable[[Path], Path]
    """Where its file is, below the benchmarks' folder unless it is real data."""
    use: str
    draw: float
    """The share of rows that is drawn, so that few are like many."""
    rule: str | None = None

    def table(self, home: Path, limit: int) -> Row:
        """A table of `data`, with at most so many rows."""
        drawn = {"fraction": self.draw, "draw": SEED} if self.draw < 1 else {}
        rule = {"binarise": {"rule": self.rule}} if self.rule else {}
        return {"use": self.use, "path": str(self.path(home)), "limit": limit, **drawn, **rule}

    def whole(self, home: Path) -> Row:
        """A table of `data` with every row."""
        rule = {"binarise": {"rule": self.rule}} if self.rule else {}
        return {"use": self.use, "path": str(self.path(home)), **rule}


def _real(name: str) -> Callable[[Path], Path]:
    return lambda _: shared() / "data" / f"{name}.jsonl.gz"


def _made(name: str, rows: Callable[[], Iterator[Row]]) -> Callable[[Path], Path]:
    def path(home: Path) -> Path:
        place = home / "data" / f"{name}.jsonl"
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            staging = place.with_suffix(".part")
            staging.write_text("".join(json.dumps(row) + "\n" for row in rows()), "utf-8")
            staging.replace(place)
        return place

    return path


def multi_turn_pairs() -> Iterator[Row]:
    """Pairs with a long prompt: a dialogue up to one of its later replies, which stands against a later reply of another."""
    with gzip.open(shared() / "data" / "chat_sgd.jsonl.gz", "rt", encoding="utf-8") as file:
        dialogues: list[Turns] = [json.loads(line)["messages"] for line, _ in zip(file, range(NUM_LOOKED_AT), strict=False)]
    chance = random.Random(SEED)  # noqa: S311  no secret
    for turns in dialogues:
        *prompt, chosen = _cut(turns, chance)
        *_, rejected = _cut(chance.choice(dialogues), chance)
        if chosen["content"].strip() != rejected["content"].strip():
            yield {"chosen": [*prompt, chosen], "rejected": [*prompt, rejected]}


def _cut(turns: Turns, chance: random.Random) -> Turns:
    """The dialogue up to a reply of its second half."""
    replies = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    return turns[: chance.choice(replies[len(replies) // 2 :]) + 1]


def drawn_pairs(count: int = 500) -> Iterator[Row]:
    """Pairs of UltraFeedback's lengths, in words that are one token each."""
    chance = random.Random(SEED)  # noqa: S311  no secret
    words = single_tokens()
    for _ in range(count):
        prompt = round(min(max(chance.lognormvariate(*PROMPT), MIN_PROMPT), MAX_PROMPT))
        replies = [round(min(chance.lognormvariate(*length), MAX_LENGTH - prompt)) for length in (CHOSEN, REJECTED)]
        sizes = [prompt - AROUND_PROMPT, *(size - AROUND_REPLY for size in replies)]
        asked, chosen, rejected = (" ".join(chance.choices(words, k=max(1, size))) for size in sizes)
        yield {"prompt": asked, "chosen": _said(asked, chosen), "rejected": _said(asked, rejected)}


def single_tokens() -> Sequence[str]:
    """Words of the Mistral tokenizer that are one token after a blank."""
    file = shared() / "models" / "mistral-7b-v0.1-tokenizer" / "tokenizer.json"
    pieces = json.loads(file.read_text("utf-8"))["model"]["vocab"]
    return sorted(piece[1:] for piece in pieces if piece[0] == "▁" and piece[1:].isascii() and piece[1:].isalpha() and len(piece) > 3)


def _said(asked: str, reply: str) -> Turns:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]


WORKLOADS = {
    "arena": Workload("dpo", _real("feedback_arena"), "ultrafeedback", draw=0.5, rule="best_random"),
    "pandalm": Workload("dpo", _real("preference_pandalm"), "ultrafeedback", draw=0.3),
    "multi-turn": Workload("dpo", _made("multi-turn", multi_turn_pairs), "jsonl", draw=0.3),
    "ultrafeedback": Workload("dpo", _made("ultrafeedback", drawn_pairs), "jsonl", draw=1),
    "chat": Workload("sft", _real("chat_sgd"), "jsonl", draw=0.2),
}

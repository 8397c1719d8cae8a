"""Generated rows in each format, for trying a preset offline within seconds."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from zephyr_kit import ZkitError
from zkit_sources.formats import FORMATS, FormatName

NUM_ROWS = 64

WORDS = {
    "thing": ("kite", "lantern", "teapot", "bicycle", "compass", "violin", "ladder", "umbrella", "telescope", "basket", "hammer", "candle"),
    "place": ("harbour", "orchard", "library", "market", "mountain hut", "railway station", "lighthouse", "meadow", "workshop", "old mill"),
    "person": ("a baker", "a sailor", "a teacher", "a gardener", "a young girl", "an old clockmaker", "a shy painter", "a postman"),
    "quality": ("light", "sturdy", "bright", "quiet", "useful", "simple", "rare", "well kept"),
}
QUESTIONS = (
    "What is a {thing} good for in a {place}?",
    "Tell me a short story about {person} and a {thing}.",
    "Why would {person} carry a {thing} to the {place}?",
    "Describe a {quality} {thing} in one sentence.",
    "How do I look after a {thing}?",
)
ANSWERS = (
    "{Person} once brought a {thing} to the {place}, and it proved {quality} enough to keep.",
    "A {thing} is {quality}, so it serves well in a {place}.",
    "Keep the {thing} dry, use it with care, and it stays {quality} for years.",
    "In the {place} stood a {quality} {thing}. {Person} took it home and was glad.",
)
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
POOR_ANSWERS = ("I do not know about a {thing}.", "{thing} {thing} {place}.", "Ask {person}, not me.", "The {place} is far. That is all.")


def check_known(name: str, where: str) -> FormatName:
    """The format to imitate; raises ZkitError when no row could tell it."""
    if name not in FORMATS:
        raise ZkitError(f'{where}: no row tells the format to imitate; name it, as in format = "messages" (known: {", ".join(FORMATS)})')
    return cast(FormatName, name)


def write_rows(folder: Path, name: FormatName, *, seed: str) -> Path:
    """A file of JSON lines with rows in that format; the same seed gives the same rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{hashlib.blake2b(seed.encode(), digest_size=4).hexdigest()}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(name, seed=seed)), encoding="utf-8")
    return path


def rows(name: FormatName, *, seed: str) -> Iterator[dict[str, Any]]:
    """Rows in that format, every third dialogue with a second exchange."""
    draw = random.Random(f"{name} {seed}")  # noqa: S311 - not for secrets
    for number in range(NUM_ROWS):
        words = {name: draw.choice(choices) for name, choices in WORDS.items()}
        words["Person"] = words["person"].capitalize()
        turns = [draw.choice(QUESTIONS), draw.choice(ANSWERS)]
        if number % 3 == 0:
            turns += ["And what became of the {thing}?", f"It stayed in the {{place}} for {number + 2} years."]
        yield row(name, [turn.format(**words) for turn in turns], poor=draw.choice(POOR_ANSWERS).format(**words), number=number)


def row(name: FormatName, turns: list[str], *, poor: str, number: int) -> dict[str, Any]:
    """Row `number`: `turns` alternate between user and assistant; `poor` is a worse last answer."""
    speakers, text = ("human", "gpt"), {"text": " ".join(turns)}
    pair = {"chosen": messages(turns), "rejected": messages([*turns[:-1], poor])}
    made: dict[str, dict[str, Any]] = {
        "messages": {"messages": messages(turns)},
        "conversations": {"conversations": [{"from": speakers[place % 2], "value": turn} for place, turn in enumerate(turns)]},
        "ultrachat": {"id": str(number), "data": turns},
        "ultrafeedback": rated(turns, poor, number=number),
        "preference": {"prompt": turns[0], **pair, "score_chosen": 8.0, "score_rejected": 3.0},
        "alpaca": {"instruction": turns[0], "input": "" if len(turns) == 2 else turns[1], "output": turns[-1]},
        "prompt_completion": {"prompt": turns[0], "completion": turns[-1]},
        "labelled": {"prompt": turns[0], "completion": poor if number % 2 else turns[-1], "label": number % 2 == 0},
        "text": text,
        "prompt": {"prompt": turns[0]},
        "any_text": text,
    }
    return made[name]


def rated(turns: list[str], poor: str, *, number: int) -> dict[str, Any]:
    """A row of raw UltraFeedback with four completions, the best of them in another place from row to row."""
    answer = turns[1]
    ranked = ((answer, 5), (f"{poor} {answer}", 4), (f"{answer} {poor} {poor}", 3), (poor, 1))
    first = number % len(ranked)
    completions = [
        {
            "model": f"model {rating}",
            "response": response,
            "annotations": {aspect: {"Rating": str(rating), "Rationale": "Made up."} for aspect in ASPECTS},
            "critique": "Made up.",
            "overall_score": 2.0 * rating - 1,
            "fine-grained_score": float(rating),
        }
        for response, rating in (*ranked[first:], *ranked[:first])
    ]
    return {"source": "made up", "instruction": turns[0], "models": [one["model"] for one in completions], "completions": completions}


def messages(turns: list[str]) -> list[dict[str, str]]:
    """Turns of user and assistant, in turn."""
    return [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]

"""Synthetic dialogues of UltraChat's lengths, made of real sentences with words exchanged.

UltraChat 200k has 3 to 4 exchanges and 1,100 to 1,400 Mistral tokens in a dialogue, on average.
One in 20 is wrongly cased, 3 % hold a disclaimer, 2 % nearly repeat an earlier one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

EXCHANGES = {2: 0.18, 3: 0.34, 4: 0.32, 5: 0.12, 6: 0.04}
WORDS_OF_REQUEST = (25, 0.8)
"""Median, and deviation of the logarithm."""
WORDS_OF_REPLY = (145, 0.5)
EXCHANGED = 0.12
"""Share of the words of a dialogue that another takes the place of."""
MISCASED, DISCLAIMING, REPEATING = 0.05, 0.03, 0.02
REMEMBERED = 1000
"""Earlier dialogues, any of which may be repeated."""
DISCLAIMERS = (
    "As an AI language model, I don't have personal opinions or beliefs.",
    "I do not have feelings or emotions, but I can help you with that.",
    "As an AI, I don't have personal experiences of my own.",
)
START = re.compile(r"(?:^|(?<=[.!?] ))[A-Z]|\bI\b")
Turns = list[dict[str, str]]


def shared() -> Path:
    """The folder with real data and a real tokenizer; see the README."""
    folder = Path(os.environ.get("ZKIT_SHARED") or Path(__file__).parents[2] / "shared").resolve()
    if not (folder / "data").is_dir():
        raise SystemExit(f"no real data in {folder}: set ZKIT_SHARED")
    return folder


def write(folder: Path, count: int) -> Path:
    """A file of so many dialogues, in the schema of UltraChat 200k."""
    path = folder / f"dialogues-{count}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for turns in Writer(seed=7).dialogues(count):
            prompt = turns[0]["content"]
            row = {"prompt": prompt, "prompt_id": hashlib.sha256(prompt.encode()).hexdigest(), "messages": turns}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


@dataclass(frozen=True)
class Writer:
    """Writes dialogues, the same ones for the same seed."""

    seed: int

    def dialogues(self, count: int) -> Iterator[Turns]:
        """Dialogues with what is wrong with some of them."""
        chance = random.Random(self.seed)  # noqa: S311  no secret
        earlier: list[Turns] = []
        for _ in range(count):
            if earlier and chance.random() < REPEATING:
                yield self._nearly(chance.choice(earlier), chance)
                continue
            turns = self._dialogue(chance)
            if len(earlier) < REMEMBERED:
                earlier.append(turns)
            else:
                earlier[chance.randrange(REMEMBERED)] = turns
            yield turns

    @cached_property
    def sentences(self) -> list[list[str]]:
        """Sentences as words, from answers of many models to many prompts."""
        with gzip.open(shared() / "data" / "feedback_arena.jsonl.gz", "rt", encoding="utf-8") as file:
            texts = [answer["response"] for line in file for answer in json.loads(line)["completions"]]
        found = (sentence.strip(" ") for text in texts if text for sentence in re.split(r"(?<=[.!?]) +|(?<=\n)", text))
        # Wrongly cased are only those that are made so.
        return [words for sentence in found if not sentence[:1].islower() and 3 <= len(words := sentence.split(" ")) <= 60]

    @cached_property
    def vocabulary(self) -> list[str]:
        """Words as often as they are used."""
        return [word for words in self.sentences[::7] for word in words if word.isalpha() and word.islower()]

    def _dialogue(self, chance: random.Random) -> Turns:
        (exchanges,) = chance.choices(list(EXCHANGES), list(EXCHANGES.values()))
        sizes = [size for _ in range(exchanges) for size in (WORDS_OF_REQUEST, WORDS_OF_REPLY)]
        texts = [self._text(round(chance.lognormvariate(0, spread) * median), chance) for median, spread in sizes]
        if chance.random() < DISCLAIMING:
            place = chance.randrange(1, len(texts), 2)
            texts[place] = f"{chance.choice(DISCLAIMERS)} {texts[place]}"
        if chance.random() < MISCASED:
            texts = [START.sub(lambda found: found.group().lower() if chance.random() < 0.4 else found.group(), text) for text in texts]
        return [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(texts)]

    def _text(self, size: int, chance: random.Random) -> str:
        words: list[str] = []
        while len(words) < max(size, 4):
            words += chance.choice(self.sentences)
        self._exchange(words, EXCHANGED, chance)
        return " ".join(words).replace("\n ", "\n").strip()

    def _exchange(self, words: list[str], share: float, chance: random.Random) -> None:
        for _ in range(round(share * len(words))):
            place = chance.randrange(len(words))
            if words[place].islower():
                words[place] = chance.choice(self.vocabulary)

    def _nearly(self, turns: Turns, chance: random.Random) -> Turns:
        repeated: list[dict[str, Any]] = []
        for turn in turns:
            words = turn["content"].split(" ")
            self._exchange(words, 0.01, chance)
            repeated.append({**turn, "content": " ".join(words)})
        return repeated

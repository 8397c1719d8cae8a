"""A judge that counts points by rule, so that anybody can see why a reply got its score."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.example import Message
from zephyr_kit.protocols import Bench, Case, Judgement
from zkit_quickstart import phrases
from zkit_quickstart.words import ANIMALS, NOWHERE, PLACES, THINGS

if TYPE_CHECKING:
    import torch

BEST = 10.0
RULES = 1
"""To be raised whenever a judgement would change, so that none made by earlier rules is taken for one by these."""


@dataclass(frozen=True, slots=True)
class QuickstartJudge:
    """Scores replies from 0 to 10 by simple rules; the points of each rule are an aspect, what is amiss a remark."""

    def judge(self, cases: Sequence[Case], bench: Bench) -> Iterator[tuple[int, Judgement]]:
        for number, case in enumerate(cases):
            yield number, judge_case(case)

    def fingerprint(self) -> Mapping[str, Any]:
        return {"use": "quickstart", "rules": RULES}

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> QuickstartJudge:
        return self


def judge_case(case: Case) -> Judgement:
    """Score, points and faults of each reply."""
    granted = [points(case.dialogue, reply) for reply in case.replies]
    rules = dict.fromkeys(rule for each in granted for rule in each)
    aspects = {rule: tuple(each.get(rule, 0.0) for each in granted) for rule in rules}
    return Judgement(tuple(judge(case.dialogue, reply) for reply in case.replies), aspects, tuple(map(faults, granted)))


def faults(granted: Mapping[str, float]) -> str:
    """What earned nothing or cost something; empty if nothing did."""
    return ", ".join(f"{rule}: {value:g}" for rule, value in granted.items() if value <= 0)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a dialogue asks for."""

    names: tuple[str, ...]
    """Words that the reply must contain."""
    num_sentences: tuple[int, int]
    """At least and at most, opening and closing words apart."""
    needs_ending: bool
    same_cast: bool
    """Whether another animal, thing or place than those asked for is a mistake."""


def judge(dialogue: Sequence[Message], reply: str) -> float:
    """The score of a reply."""
    return min(BEST, max(0.0, sum(points(dialogue, reply).values())))


def points(dialogue: Sequence[Message], reply: str) -> dict[str, float]:
    """The points of a reply by rule; the good ones add up to 10, faults cost some."""
    wish = read_wish(dialogue)
    body, closing = split_closing(reply)
    sentences, said = split_sentences(body), words_of(body)
    granted = {f"names {name}": 5 / len(wish.names) * holds(said, name) for name in wish.names}
    is_told = len(said) > 4
    rules = {
        "asked length": is_told and wish.num_sentences[0] <= len(sentences) <= wish.num_sentences[1],
        "nothing repeated": is_told and not repeats(sentences, said),
        "whole sentences": is_told and all(re.search(r'^["A-Z].*[a-z][.!?]$', sentence) for sentence in sentences),
        "proper ending": is_told and (not wish.needs_ending or sentences[-1].startswith(phrases.ENDING_STARTS)),
        "friendly closing": is_told and bool(closing),
    }
    faults = {
        "not asked for": -1.0 * (wish.same_cast and strays(said, wish.names)),
        "several heroes": -1.0 * (len(named(body, NAMES)) > 1),
        "rude": -2.0 * any(line in reply for line in phrases.RUDE),
        "unknown words": -0.5 * min(6, sum(word not in KNOWN_WORDS for word in words_of(reply))),
    }
    return granted | {rule: float(kept) for rule, kept in rules.items()} | {rule: cost for rule, cost in faults.items() if cost}


def read_wish(dialogue: Sequence[Message]) -> Wish:
    """What the last message of the user asks for, in the light of the ones before."""
    asked = [message.content for message in dialogue if message.role == "user"]
    cast = next((found for content in reversed(asked) if (found := named(content, CAST)) and len(found) > 1), ())
    last = asked[-1] if asked else ""
    if named(last, CAST) == cast:
        return Wish(cast, (3, 5), needs_ending=True, same_cast=True)
    if "short" in last or "one sentence" in last:
        return Wish(cast, (1, 1), needs_ending=False, same_cast=True)
    names = (*named(last, NAMES), *named(" ".join(cast), tuple(thing.name for thing in THINGS)))
    return Wish(names, (2, 3), needs_ending=True, same_cast=False)


def split_closing(reply: str) -> tuple[str, str]:
    """The reply without its opening and closing words, and the friendly closing if there is one."""
    body = reply.strip()
    for preamble in phrases.PREAMBLES:
        body = body.removeprefix(preamble).lstrip()
    for closing in (*phrases.CLOSINGS, *phrases.RUDE):
        if body.endswith(closing):
            return body.removesuffix(closing).rstrip(), closing if closing in phrases.CLOSINGS else ""
    return body, ""


def split_sentences(text: str) -> list[str]:
    """The sentences of a text; what follows the last full stop counts as one too."""
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", text) if sentence]


def words_of(text: str) -> list[str]:
    """The words of a text in small letters."""
    return re.findall(r"[a-z]+", text.lower())


def holds(said: Sequence[str], name: str) -> bool:
    """Whether the words of a name stand in the text, one after the other."""
    return f" {name} " in f" {' '.join(said)} "


def named(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the names that the text holds."""
    said = words_of(text)
    return tuple(name for name in names if holds(said, name))


def repeats(sentences: Sequence[str], said: Sequence[str]) -> bool:
    """Whether a sentence, or six words in a row, come twice."""
    runs = Counter(tuple(said[start : start + 6]) for start in range(len(said) - 5))
    return len(set(sentences)) < len(sentences) or any(count > 1 for count in runs.values())


def strays(said: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether an animal, a thing or a place is named that was not asked for."""
    return any(name not in wanted and holds(said, name) for name in CAST)


def collect_words() -> frozenset[str]:
    """Every word that the world is told with."""
    lines = (phrases.TIMES, phrases.OPENINGS, phrases.ENDINGS, phrases.SEQUELS, phrases.PREAMBLES, phrases.CLOSINGS, phrases.RUDE)
    told = [phrase for line in lines for phrase in line]
    told += [phrase for quests in (phrases.TROUBLES, phrases.TURNS, phrases.SHORT) for line in quests.values() for phrase in line]
    told += [f"{thing.with_article} {thing.look} {thing.works}" for thing in THINGS]
    told += [f"{place.name} {place.at} {place.spot} {place.helper}" for place in (*PLACES, NOWHERE)]
    told += [" ".join((animal.adjective, animal.kind, animal.name, animal.subject, animal.object, animal.possessive)) for animal in ANIMALS]
    return frozenset(words_of(re.sub(r"{\w+}", " ", " ".join(told))))


CAST = (
    *(animal.kind for animal in ANIMALS),
    *(thing.name for thing in THINGS),
    *(place.name.removeprefix("the ") for place in PLACES),
)
"""Animals, things and places: what a request names."""

NAMES = tuple(animal.name.lower() for animal in ANIMALS)

KNOWN_WORDS: frozenset[str] = collect_words()

"""Suites at work on models, each in a folder of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_kit.config import plain
from zephyr_kit.evaluations import RESULT, finite, read_evaluation
from zephyr_kit.keys import what_is_read
from zephyr_kit.observe import Narrator
from zephyr_kit.protocols import Evaluation, Suite
from zephyr_kit.records import as_json, digest, write_json
from zephyr_kit.subjects import Subject
from zephyr_kit.surroundings import surroundings


def evaluate(suite: Suite, models: Mapping[str, Subject], folder: Path) -> list[Evaluation]:
    """What a suite finds; None for what is not finite."""
    return [finite(one) for one in as_found(suite, models, folder)]


def as_found(suite: Suite, models: Mapping[str, Subject], folder: Path) -> list[Evaluation]:
    """The same as the suite says it, figures that are not finite included."""
    last = list(models.values())[-1]
    folder.mkdir(parents=True, exist_ok=True)
    found = suite.evaluate(models, last.tokenizer, folder)
    return [found] if isinstance(found, Evaluation) else list(found)


def evaluate_once(
    name: str, suite: Suite, settings: Mapping[str, Any], models: Mapping[str, Subject], *, folder: Path, narrator: Narrator
) -> list[Evaluation]:
    """The same, or what it has found before with these settings, data and models; written to a folder of its own in `folder`."""
    contents = {name: subject.content for name, subject in models.items()}
    key = as_json({"suite": settings, "read": what_is_read(suite), "models": contents})
    place = folder / f"{name}-{digest(key)[:8]}"
    known = json.loads((place / RESULT).read_text("utf-8")) if (place / RESULT).exists() else None
    if known is not None and known["key"] == key:
        narrator.say(f"{name}: measured before, nothing changed ({place})")
        return [read_evaluation(facts) for facts in known["evaluations"]]
    narrator.say(f"{name}: measuring {', '.join(models)} ({place})")
    found = evaluate(suite, models, place)
    # Settings, models and content of the data, what was found, and on which machine.
    write_json(place / RESULT, {"key": key, "evaluations": plain(found), "made": surroundings()})
    return found


def folder_names(suites: Sequence[str]) -> list[str]:
    """A name for the folder of each suite; a second of the same kind is numbered."""
    seen: Counter[str] = Counter()
    names = []
    for suite in suites:
        seen[suite] += 1
        names.append(suite if seen[suite] == 1 else f"{suite}-{seen[suite]}")
    return names

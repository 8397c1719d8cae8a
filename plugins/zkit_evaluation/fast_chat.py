"""MT-Bench's files and scoring rules, as FastChat has them (lm-sys/FastChat, fastchat/llm_judge; arXiv 2306.05685).

    question.jsonl           question_id, category, turns
    model_answer/M.jsonl     question_id, answer_id, model_id, choices[{index, turns}], tstamp
    model_judgment/J_single.jsonl   question_id, model, judge[name, prompt], user_prompt, judgment, score, turn, tstamp
    model_judgment/J_pair.jsonl     question_id, model_1, model_2, g1_winner, g2_winner, judge, g1_…, g2_…, turn, tstamp
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from zephyr_kit import ZkitError
from zkit_evaluation.located import read_lines

WITH_REFERENCE = ("math", "reasoning", "coding", "arena-hard-200")
"""Categories that are judged beside a reference answer."""
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
    "arena-hard-200": 0.0,
}
OTHER_TEMPERATURE = 0.7
UNREAD = -1
"""The score of a judgement that holds none; left out of every mean."""
NO_ANSWER, NO_JUDGEMENT = "ERROR", "$ERROR$"
"""What stands for what could not be had."""
TIE, FAULT = "tie", "error"
NEAR = 0.1
"""Two ratings that lie no further apart are a tie."""

RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
TWO_RATINGS = (re.compile(r"\[\[(\d+\.?\d*),\s?(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*),\s?(\d+\.?\d*)\]"))
"""The second is tried where the first is not found."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """A question of one or two turns."""

    id: int | str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] | None = None
    """The answers that the question brings itself; those of a file go before them."""

    @property
    def temperature(self) -> float:
        """At which it is answered."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)


def read_questions(place: str, advice: str) -> list[Question]:
    """The questions of a `question.jsonl`."""
    found = []
    for number, row in enumerate(read_lines(place, advice), 1):
        try:
            reference = row.get("reference")
            found.append(Question(row["question_id"], row["category"], tuple(row["turns"]), tuple(reference) if reference else None))
        except (KeyError, TypeError) as error:
            what = "is no question of FastChat's, with question_id, category and turns"
            raise ZkitError(f"{place}: row {number} {what} ({error})") from error
    if not found:
        raise ZkitError(f"{place}: holds no questions")
    return found


def read_answers(place: str) -> dict[int | str, tuple[str, ...]]:
    """The turns of each answer of a `model_answer` or `reference_answer` file, by question; of its first choice, as FastChat takes it."""
    try:
        return {row["question_id"]: tuple(row["choices"][0]["turns"]) for row in read_lines(place)}
    except (KeyError, IndexError, TypeError) as error:
        raise ZkitError(f"{place}: is no file of answers of FastChat's, with question_id and choices ({error})") from error


def rating(judgement: str) -> float:
    """The score in a judgement of a single answer; -1 for none."""
    for pattern in RATINGS:
        if found := pattern.search(judgement):
            return float(found[1]) if "." in found[1] else int(found[1])
    return UNREAD


def winner(judgement: str, form: str) -> str:
    """`A`, `B`, `tie` or `error`, of a judgement of two answers in the form that its prompt asks for."""
    if form == "[[A]]":
        verdicts = {"[[A]]": "A", "[[B]]": "B", "[[C]]": TIE}
        return next((verdict for sign, verdict in verdicts.items() if sign in judgement), FAULT)
    for pattern in TWO_RATINGS:
        if found := pattern.search(judgement):
            first, second = float(found[1]), float(found[2])
            return TIE if abs(first - second) <= NEAR else "A" if first > second else "B"
    return FAULT


def winners(first: str, second: str) -> tuple[str, str]:
    """The winner of each game, the answers having been swapped in the second: `model_1`, `model_2`, `tie` or `error`."""
    games = ({"A": "model_1", "B": "model_2"}, {"A": "model_2", "B": "model_1"})
    return games[0].get(first, first), games[1].get(second, second)


def single_scores(rows: Iterable[Row]) -> dict[str, dict[str, float | None]]:
    """Of each model: the mean score of the first and of the second turn, and of all scores of both together."""
    scores = _by_model(rows, lambda row: (row["turn"], row["score"]))
    table: dict[str, dict[str, float | None]] = {}
    for model, found in scores.items():
        read = [(turn, score) for turn, score in found if score != UNREAD]
        turns = {turn: [score for at, score in read if at == turn] for turn in (1, 2)}
        table[model] = {
            "score": _mean([score for _, score in read]),
            **{f"turn {turn}": _mean(own) for turn, own in turns.items()},
            "unread": len(found) - len(read),
        }
    return table


def category_scores(rows: Iterable[Row], categories: Mapping[int | str, str]) -> dict[str, dict[str, float | None]]:
    """Of each model, the mean of all scores of a category."""
    scores = _by_model(rows, lambda row: (categories[row["question_id"]], row["score"]))
    names = list(dict.fromkeys(categories.values()))
    return {
        model: {name: _mean([score for category, score in found if category == name and score != UNREAD]) for name in names}
        for model, found in scores.items()
    }


def pair_results(rows: Iterable[Row], *, baseline: str | None = None) -> dict[str, dict[str, float]]:
    """Of each model: wins, losses and ties. Who does not win both games has a tie, and half a win; a faulty judgement counts nothing."""
    counts: dict[str, dict[str, float]] = defaultdict(lambda: {"win": 0, "loss": 0, "tie": 0})
    for row in rows:
        games, names = (row["g1_winner"], row["g2_winner"]), (row["model_1"], row["model_2"])
        if FAULT in games or (baseline is not None and baseline not in names):
            continue
        is_tie = games[0] == TIE or games[0] != games[1]
        won = None if is_tie else row[games[0]]
        for name in names:
            counts[name]["tie" if won is None else "win" if name == won else "loss"] += 1
    counts.pop(baseline or "", None)
    return {model: {**found, **_rates(found)} for model, found in counts.items()}


def _rates(found: Mapping[str, float]) -> dict[str, float]:
    total, adjusted = sum(found.values()), found["win"] + 0.5 * found["tie"]
    return {"win_rate": found["win"] / total, "loss_rate": found["loss"] / total, "win_rate_adjusted": adjusted / total}


def _by_model(rows: Iterable[Row], value: Callable[[Row], tuple[Any, float]]) -> dict[str, list[tuple[Any, float]]]:
    found: dict[str, list[tuple[Any, float]]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(value(row))
    return found


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None

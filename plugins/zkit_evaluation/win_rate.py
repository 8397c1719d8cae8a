"""The suite `win-rate`: replies of two or more models, compared two by two, in both orders."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from zephyr_kit import ZkitError
from zephyr_kit.config import suggest
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import Case, Evaluation, Failure, Judge, Judgement, Request, Sampling, Tokenizer
from zkit_evaluation.replies import NUM_SAMPLES, Share, Writing, ask, desk_for, write_lines

if TYPE_CHECKING:
    from zephyr_kit.desk import Desk
    from zephyr_kit.prompts import Dialogue, Prompt
    from zephyr_kit.subjects import Subject
    from zkit_evaluation.intervals import Interval

Texts = Mapping[str, Sequence[str | None]]
"""The replies of each model to each prompt; None where one has failed."""


@dataclass(frozen=True, slots=True)
class Match:
    """Two models on one prompt, judged in both orders."""

    prompt: int
    names: tuple[str, str]
    judgements: tuple[Judgement | Failure, Judgement | Failure] | None
    """Of the replies in the order of the names, and in reverse; None for equal replies, which nobody need be asked about."""

    def signs(self) -> tuple[int, int] | None:
        """For each order, 1 where the first model is better, -1 where the second is, 0 for a tie; None where a judgement has failed."""
        if self.judgements is None:
            return 0, 0
        first, second = self.judgements
        if isinstance(first, Failure) or isinstance(second, Failure):
            return None
        return _sign(first.scores[0] - first.scores[1]), _sign(second.scores[1] - second.scores[0])

    def value(self) -> float | None:
        """1 where the first model wins in both orders, 0 where it loses in both, else a half."""
        signs = self.signs()
        if signs is None:
            return None
        return 0.5 if signs[0] != signs[1] else (1 + signs[0]) / 2


@dataclass(frozen=True, kw_only=True)
class WinRate(Writing):
    """Has the replies of models to prompts compared two by two, in both orders; who does not win in both has a tie."""

    prompts: tuple[Portion, ...]
    """Each dialogue up to its first reply."""
    judge: Judge
    against: str | None = None
    """The model that the others are compared with; all are compared with all, unless named."""
    bad_rows: Share = 0.01

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("needs at least one table in `prompts`")

    def problems(self) -> Sequence[str]:
        """What stands in the way of the judge."""
        from zephyr_kit.devices import find_device

        return self.judge.problems(find_device())

    def evaluate(self, models: Mapping[str, Subject], tokenizer: Tokenizer, folder: Path) -> Evaluation:
        """Ask every model, then the judge; both stand in files of `folder`."""
        from zephyr_kit.prompts import read_prompts

        pairs = self._pairs(list(models))
        prompts, _ = read_prompts(self.prompts, allowed=self.bad_rows, where="suite win-rate")
        desk = desk_for(models, "win-rate", max_failed=self.max_failed)
        requests = [Request(prompt.dialogue, self._sampling(prompt)) for prompt in prompts]
        texts = {name: ask(desk, name, subject, requests, "replies") for name, subject in models.items()}
        write_lines(folder / "replies.jsonl", _reply_lines(prompts, texts))
        matches = self._judged(desk, prompts, texts, pairs)
        write_lines(folder / "judgements.jsonl", [_match_line(match, prompts, texts) for match in matches])
        rows, intervals = self._table(texts, matches)
        return Evaluation("Win rates", self._columns(list(models)), rows, samples(prompts, texts), intervals)

    def miniature(self, folder: Path) -> WinRate:
        """A few prompts, short replies, a judge that is offline, and no failure that is too many."""
        from zephyr_kit.smoke import MAX_NEW_TOKENS, small_portions

        prompts = tuple(replace(portion, limit=4) for portion in small_portions(self.prompts, folder))
        return replace(self, prompts=prompts, judge=self.judge.miniature(folder), max_new_tokens=MAX_NEW_TOKENS, max_failed=1.0)

    def _sampling(self, prompt: Prompt) -> Sampling:
        from zephyr_kit.writing import seed_of

        return Sampling(self.max_new_tokens, self.temperature, self.top_p, seed_of("win-rate", prompt.id, self.seed))

    def _pairs(self, names: list[str]) -> list[tuple[str, str]]:
        if self.against is not None and self.against not in names:
            raise ZkitError(f"suite win-rate: against = {self.against!r}: there is no such model{suggest(self.against, names)}")
        if len(names) < 2:
            raise ZkitError(f"suite win-rate: compares two or more models, and there is only {names[0]}")
        if self.against is None:
            return list(itertools.combinations(names, 2))
        return [(name, self.against) for name in names if name != self.against]

    def _judged(self, desk: Desk, prompts: Sequence[Prompt], texts: Texts, pairs: Sequence[tuple[str, str]]) -> list[Match]:
        there = [(pair, number) for pair in pairs for number in range(len(prompts)) if _both(texts, pair, number) is not None]
        asked = [(pair, number) for pair, number in there if len(set(_both(texts, pair, number) or ())) == 2]
        cases = []
        for pair, number in asked:
            first, second = _both(texts, pair, number) or ("", "")
            cases += [Case(prompts[number].dialogue, (first, second)), Case(prompts[number].dialogue, (second, first))]
        judged = desk.judge(self.judge, cases, "judgements")
        known = {each: (judged[2 * place], judged[2 * place + 1]) for place, each in enumerate(asked)}
        return [Match(number, pair, known.get((pair, number))) for pair, number in there]

    def _columns(self, names: Sequence[str]) -> dict[str, str]:
        others = names if self.against is None else [self.against]
        whom = "each of the others" if self.against is None else self.against
        beside = {f"over {name}": f"the same, against {name} alone" for name in others} if len(names) > 2 and self.against is None else {}
        return {
            "win rate": f"share of prompts on which it beats {whom} in both orders; a tie counts half",
            **beside,
            "order mattered": "share of comparisons that came out otherwise with the replies in the other order",
            "length": "mean length of its replies, in characters",
            "compared": "how many comparisons there were, those that failed left out",
        }

    def _table(self, texts: Texts, matches: Sequence[Match]) -> tuple[dict[str, dict[str, float | None]], dict[str, dict[str, Interval]]]:
        from zkit_evaluation.intervals import interval_of_mean, known

        rows: dict[str, dict[str, float | None]] = {}
        intervals: dict[str, dict[str, Interval]] = {}
        for name in texts:
            values = {f"over {other}": per_prompt(matches, name, other) for other in texts if other != name}
            values["win rate"] = [] if name == self.against else per_prompt(matches, name)
            row: dict[str, float | None] = {column: fmean(found) if found else None for column, found in values.items()}
            rows[name] = {**row, **_beside(texts[name], [match for match in matches if name in match.names])}
            shown = {column: found for column, found in values.items() if column in self._columns(list(texts))}
            intervals[name] = known({column: interval_of_mean(found, seed=self.seed) for column, found in shown.items()})
        return rows, intervals


def per_prompt(matches: Sequence[Match], name: str, other: str | None = None) -> list[float]:
    """For each prompt, how a model did against another, or against all: prompts are what is drawn again for the interval."""
    found: dict[int, list[float]] = {}
    for match in matches:
        value = match.value()
        if value is not None and name in match.names and (other is None or other in match.names):
            found.setdefault(match.prompt, []).append(value if match.names[0] == name else 1 - value)
    return [fmean(values) for values in found.values()]


def _beside(texts: Sequence[str | None], matches: Sequence[Match]) -> dict[str, float | None]:
    signs = [signs for match in matches if (signs := match.signs()) is not None]
    lengths = [len(text) for text in texts if text is not None]
    return {
        "order mattered": fmean(float(first != second) for first, second in signs) if signs else None,
        "length": fmean(lengths) if lengths else None,
        "compared": len(signs),
    }


def samples(prompts: Sequence[Prompt], texts: Texts) -> list[dict[str, str]]:
    """The first few prompts with every model's reply."""
    numbers = range(min(NUM_SAMPLES, len(prompts)))
    return [{"prompt": told(prompts[n].dialogue), **{name: replies[n] or "" for name, replies in texts.items()}} for n in numbers]


def told(dialogue: Dialogue) -> str:
    """A dialogue to be read."""
    if len(dialogue) == 1:
        return dialogue[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in dialogue)


def _both(texts: Texts, pair: tuple[str, str], number: int) -> tuple[str, str] | None:
    first, second = texts[pair[0]][number], texts[pair[1]][number]
    return None if first is None or second is None else (first, second)


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)


def _reply_lines(prompts: Sequence[Prompt], texts: Texts) -> list[dict[str, object]]:
    from zephyr_kit.gathered import write_turns

    return [
        {"model": name, "origin": prompt.origin, "prompt": write_turns(prompt.dialogue), "reply": reply}
        for name, replies in texts.items()
        for prompt, reply in zip(prompts, replies, strict=True)
    ]


def _match_line(match: Match, prompts: Sequence[Prompt], texts: Texts) -> dict[str, object]:
    from zephyr_kit.config import plain

    first, second = match.names
    line: dict[str, object] = {"origin": prompts[match.prompt].origin, "model_1": first, "model_2": second, "value": match.value()}
    told_of = {"both orders": plain(match.judgements)} if match.judgements is not None else {"equal": True}
    return {**line, **told_of, "reply_1": texts[first][match.prompt], "reply_2": texts[second][match.prompt]}

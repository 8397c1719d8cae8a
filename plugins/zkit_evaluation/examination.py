"""An MT-Bench examination: answers, turn after turn, and what the judge says of them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit import ZkitError
from zephyr_kit.answers import digest
from zephyr_kit.example import Message
from zephyr_kit.protocols import Failure, Reply, Request, Sampling
from zephyr_kit.writing import seed_of
from zkit_evaluation import fast_chat
from zkit_evaluation.fast_chat import NO_ANSWER, NO_JUDGEMENT, WITH_REFERENCE, Question
from zkit_evaluation.intervals import interval_of_ratio, known
from zkit_evaluation.judge_prompts import JudgePrompt, own_prompts, prompt_name, read_prompts
from zkit_evaluation.replies import NUM_SAMPLES, ask, desk_for, file_of, write_lines

if TYPE_CHECKING:
    from zephyr_kit.desk import Desk
    from zephyr_kit.subjects import Subject
    from zkit_evaluation.intervals import Interval
    from zkit_evaluation.mt_bench import MtBench

Turns = tuple[str, ...]
Answers = Mapping[str, Mapping[int | str, Turns]]
"""The turns of each model's answer to each question."""
Row = dict[str, Any]
LONGEST_QUOTE = 120
"""Characters of an answer of the judge; its verdict should stand at the end."""


@dataclass(frozen=True)
class Asked:
    """A request to the judge: by which prompt, filled with what."""

    question: Question
    turn: int
    prompt: JudgePrompt
    text: str


@dataclass(frozen=True)
class Examination:
    """Models that are examined; `folder` has FastChat's layout."""

    bench: MtBench
    models: Mapping[str, Subject]
    folder: Path

    @cached_property
    def questions(self) -> list[Question]:
        """All of them."""
        from zkit_evaluation.mt_bench import ADVICE

        return fast_chat.read_questions(self.bench.questions, ADVICE)

    @cached_property
    def others(self) -> Answers:
        """The answers of other models, from files."""
        found = {Path(place).stem: fast_chat.read_answers(place) for place in self.bench.answers}
        for name, answers in found.items():
            missing = [question.id for question in self.questions if len(answers.get(question.id, ())) < len(question.turns)]
            if missing or name in self.models:
                why = f"has no whole answer to question {missing[0]}" if missing else "is called as a model that is measured"
                raise ZkitError(f"suite mt-bench: answers: {name} {why}")
        return found

    def read(self) -> None:
        """Read every file, so that one that will not do is told before any model is asked."""
        _ = self.others, self._prompts, self._references

    @property
    def names(self) -> list[str]:
        """Of all models."""
        return [*self.models, *self.others]

    def answers(self) -> Answers:
        """Every model's answers, each turn in sight of those before."""
        desk = self._desk
        found: dict[str, Mapping[int | str, Turns]] = {}
        for name, subject in self.models.items():
            turns: dict[int | str, Turns] = {question.id: () for question in self.questions}
            for place in range(max(len(question.turns) for question in self.questions)):
                asked = [question for question in self.questions if len(question.turns) > place]
                requests = [self._request(question, turns[question.id]) for question in asked]
                texts = ask(desk, name, subject, requests, f"answers {place + 1}")
                for question, text in zip(asked, texts, strict=True):
                    turns[question.id] += (NO_ANSWER if text is None else text,)
            found[name] = turns
            write_lines(file_of(self.folder / "model_answer", name), [_answer_row(name, each, turns[each]) for each in turns])
        return {**found, **self.others}

    def singles(self, answers: Answers) -> list[Row]:
        """A row for each turn of each answer, with its grade."""
        work = [(name, asked) for name in answers for asked in self._single_requests(answers[name])]
        rows = []
        judged = self._judged([asked for _, asked in work], "grades", lambda said, _: fast_chat.rating(said) != fast_chat.UNREAD)
        for (name, asked), said in zip(work, judged, strict=True):
            told = {"question_id": asked.question.id, "model": name, "judge": [self.bench.judge.name, asked.prompt.name]}
            score = fast_chat.rating(said)
            rows.append({**told, "user_prompt": asked.text, "judgment": said, "score": score, "turn": asked.turn, "tstamp": time.time()})
        write_lines(file_of(self.folder / "model_judgment", f"{self.bench.judge.name}_single"), rows)
        return rows

    def pairs(self, answers: Answers) -> list[Row]:
        """A row for each turn of two models' answers, with the winner of both games."""
        names, against = list(answers), self.bench.against
        sides = list(itertools.combinations(names, 2)) if against is None else [(name, against) for name in names if name != against]
        work = [(pair, game, asked) for pair in sides for game, asked in self._pair_requests(answers[pair[0]], answers[pair[1]])]
        asked_of_all = [asked for *_, asked in work]
        said = self._judged(asked_of_all, "comparisons", lambda said, form: fast_chat.winner(said, form) != fast_chat.FAULT)
        rows = []
        for place in range(0, len(work), 2):
            (first, second), _, asked = work[place]
            verdicts = [fast_chat.winner(text, asked.prompt.form) for text in said[place : place + 2]]
            games = fast_chat.winners(*verdicts)
            told = {"question_id": asked.question.id, "model_1": first, "model_2": second, "g1_winner": games[0], "g2_winner": games[1]}
            texts = {"g1_user_prompt": asked.text, "g1_judgment": said[place]}
            texts |= {"g2_user_prompt": work[place + 1][2].text, "g2_judgment": said[place + 1]}
            judge = [self.bench.judge.name, asked.prompt.name]
            rows.append({**told, "judge": judge, **texts, "turn": asked.turn, "tstamp": time.time()})
        write_lines(file_of(self.folder / "model_judgment", f"{self.bench.judge.name}_pair"), rows)
        return rows

    def paired(self, rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
        """The columns of the pairs."""
        results = fast_chat.pair_results(rows, baseline=self.bench.against)
        names = {"win rate": "win_rate_adjusted", "wins": "win", "losses": "loss", "ties": "tie"}
        return {model: {shown: found[key] for shown, key in names.items()} for model, found in results.items()}

    def samples(self, answers: Answers) -> list[dict[str, str]]:
        """The first answers of the models that are measured."""
        first = self.questions[:NUM_SAMPLES]
        return [{"prompt": each.turns[0], **{name: answers[name][each.id][0] for name in self.models}} for each in first]

    @cached_property
    def _desk(self) -> Desk:
        return desk_for(self.models, "mt-bench", max_failed=self.bench.max_failed)

    @cached_property
    def _prompts(self) -> Mapping[str, JudgePrompt]:
        return own_prompts() if self.bench.prompts is None else read_prompts(self.bench.prompts)

    @cached_property
    def _references(self) -> dict[int | str, Turns]:
        """The reference answer to each question that needs one; raises ZkitError with those that lack it."""
        from zkit_evaluation.mt_bench import REFERENCES

        known = fast_chat.read_answers(self.bench.references) if self.bench.references else {}
        wanted = [question for question in self.questions if question.category in WITH_REFERENCE]
        found = {question.id: known.get(question.id, question.reference or ()) for question in wanted}
        missing = [str(question.id) for question in wanted if len(found[question.id]) < len(question.turns)]
        if missing:
            raise ZkitError(f"suite mt-bench: no reference answer to {len(missing)} questions ({', '.join(missing[:5])} …); {REFERENCES}")
        return found

    def _request(self, question: Question, before: Turns) -> Request:
        dialogue: tuple[Message, ...] = ()
        for asked, answered in zip(question.turns, before, strict=False):
            dialogue += (Message("user", asked), Message("assistant", answered))
        dialogue += (Message("user", question.turns[len(before)]),)
        seed = seed_of("mt-bench", question.id, len(before), self.bench.seed)
        return Request(dialogue, Sampling(self.bench.max_new_tokens, question.temperature, seed=seed))

    def _single_requests(self, answers: Mapping[int | str, Turns]) -> Iterator[Asked]:
        for question in self.questions:
            for turn in range(1, len(question.turns) + 1):
                yield self._asked("single", question, turn, {"answer": answers[question.id]})

    def _pair_requests(self, first: Mapping[int | str, Turns], second: Mapping[int | str, Turns]) -> Iterator[tuple[int, Asked]]:
        """Both games of each turn, one after the other."""
        for question in self.questions:
            for turn in range(1, len(question.turns) + 1):
                sides = (first[question.id], second[question.id])
                for game, (a, b) in enumerate((sides, sides[::-1])):
                    yield game, self._asked("pair", question, turn, {"answer_a": a, "answer_b": b})

    def _asked(self, kind: str, question: Question, turn: int, texts: Mapping[str, Turns]) -> Asked:
        reference = self._references.get(question.id)
        prompt = self._prompts[prompt_name(kind, referenced=reference is not None, turn=turn)]
        gaps = {f"ref_answer_{place}": text for place, text in enumerate((reference or ())[:turn], 1)}
        shown = {"question": question.turns, **texts}
        for name, turns in shown.items():
            gaps |= {name: turns[0]} if turn == 1 else {f"{name}_{place}": text for place, text in enumerate(turns[:2], 1)}
        return Asked(question, turn, prompt, prompt.fill(gaps))

    def _judged(self, asked: Sequence[Asked], label: str, is_read: Callable[[str, str], bool]) -> list[str]:
        """What the judge says to each request; too many answers without a verdict are refused."""
        judge = self.bench.judge

        def unread(number: int, reply: Reply) -> str:
            form = asked[number].prompt.form
            return "" if is_read(reply.text, form) else _without_verdict(reply, form)

        sampling = Sampling(judge.max_new_tokens, judge.temperature, seed=self.bench.seed)
        requests = [Request((Message("system", one.prompt.system), Message("user", one.text)), sampling) for one in asked]
        replies = self._desk.complete(judge.completer, requests, label, unread=unread)
        return [NO_JUDGEMENT if isinstance(reply, Failure) else reply.text for reply in replies]


def paired_columns(whom: str) -> dict[str, str]:
    """What the columns of the pairs mean."""
    return {
        "win rate": f"share of turns on which it beats {whom}; a tie counts half",
        "wins": "turns that it wins in both orders",
        "losses": "turns that it loses in both orders",
        "ties": "turns that end otherwise",
    }


def score_intervals(rows: Sequence[Row], *, seed: int) -> dict[str, dict[str, Interval]]:
    """Where each model's score lies, the questions being drawn again."""
    found: dict[str, dict[Any, list[float]]] = {}
    for row in rows:
        if row["score"] != fast_chat.UNREAD:
            found.setdefault(row["model"], {}).setdefault(row["question_id"], []).append(row["score"])
    return {
        model: known({"score": interval_of_ratio([sum(own) for own in grades.values()], [len(own) for own in grades.values()], seed=seed)})
        for model, grades in found.items()
    }


def _without_verdict(reply: Reply, form: str) -> str:
    quoted = json.dumps(reply.text[-LONGEST_QUOTE:], ensure_ascii=False)
    cut = "" if reply.finished else "it came to max_new_tokens; "
    return f"the judge's answer holds no verdict in the form {form}, with its brackets ({cut}it ends: {quoted})"


def _answer_row(model: str, question: int | str, turns: Turns) -> Row:
    identity = digest([model, question, turns]).hex()
    choices = [{"index": 0, "turns": list(turns)}]
    return {"question_id": question, "answer_id": identity, "model_id": model, "choices": choices, "tstamp": time.time()}

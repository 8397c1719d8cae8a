"""Asking completers and judges for what is not known yet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from zephyr_kit import ZkitError
from zephyr_kit.answers import Answers, digest
from zephyr_kit.config import plain
from zephyr_kit.observe import Narrator
from zephyr_kit.protocols import Bench, Case, Completer, Failure, Judge, Judgement, Reply, Request
from zephyr_kit.tally import countable

NUM_REASONS_TOLD = 5

Answer = TypeVar("Answer", Reply, Judgement)
Work = Callable[[Sequence[int], Bench], Iterator[tuple[int, Answer | Failure]]]


@dataclass(frozen=True)
class Answered(Generic[Answer]):
    """The answers to a list of questions; they stay on disk until they are looked at."""

    answers: Answers
    questions: Sequence[Any]
    read: Callable[[Mapping[str, Any]], Answer]
    failures: Mapping[int, Failure]

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[Answer | Failure]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Answer | Failure:
        if number in self.failures:
            return self.failures[number]
        return self.read(self.answers.get(self.questions[number]))


@dataclass
class Desk:
    """Where a stage asks; every answer is kept by the content of its question, and paid for once."""

    where: str
    bench: Bench
    narrator: Narrator
    max_failed: float
    max_cost: float | None = None
    cost: float = 0.0
    """US dollars of all answers, those known from before included."""
    asked: Counter[str] = field(default_factory=Counter)
    """How many questions there were, were known and failed."""

    def complete(
        self, completer: Completer, requests: Sequence[Request], label: str, *, unread: Callable[[int, Reply], str] | None = None
    ) -> Answered[Reply]:
        """The reply to each request.

        `unread` says why the reply to a request, by its number, cannot be used. Such a one counts among those that have failed; it is
        kept, and given, but the next time somebody asks, it is not taken for known.
        """
        who = dict(completer.fingerprint(self.bench))
        questions = [{"completer": who, "request": _asked(request)} for request in requests]
        check = partial(_check_reply, f"[{self.where}] completer {type(completer).__name__}")
        return self._ask(
            questions,
            lambda numbers, bench: completer.complete([requests[n] for n in numbers], bench),
            _reply,
            label,
            max_failed=self.max_failed,
            check=lambda _, reply: check(reply),
            unread=unread or (lambda *_: ""),
        )

    def judge(self, judge: Judge, cases: Sequence[Case], label: str, *, max_failed: float | None = None) -> Answered[Judgement]:
        """The judgement of each case; `max_failed` in place of the stage's."""
        who = dict(judge.fingerprint())
        questions = [{"judge": who, "case": plain(case)} for case in cases]
        check = partial(_check_judgement, f"[{self.where}] judge {type(judge).__name__}")
        return self._ask(
            questions,
            lambda numbers, bench: judge.judge([cases[n] for n in numbers], bench),
            _judgement,
            label,
            max_failed=self.max_failed if max_failed is None else max_failed,
            check=lambda number, judgement: check(cases[number], judgement),
            unread=lambda *_: "",
        )

    def facts(self) -> dict[str, Any]:
        """JSON values."""
        return {"cost": self.cost, "requests": dict(self.asked)}

    def told(self) -> str:
        """What was asked, in a line."""
        cost = f"; {self.cost:.2f} dollars" if self.cost else ""
        asked, known, failed = (self.asked[key] for key in ("questions", "known", "failed"))
        return f"{asked:,} replies and judgements, {known:,} of them known from before, {failed:,} failed{cost}"

    def _ask(
        self,
        questions: Sequence[Any],
        work: Work[Answer],
        read: Callable[[Mapping[str, Any]], Answer],
        label: str,
        *,
        max_failed: float,
        check: Callable[[int, Any], None],
        unread: Callable[[int, Any], str],
    ) -> Answered[Answer]:
        failures: dict[int, Failure] = {}
        lost: dict[int, str] = {}
        firsts = _firsts(questions)
        unknown, useless = self._unknown(questions, sorted(set(firsts)), read, unread)
        done = len(questions) - len(unknown) - len(useless)
        self.asked.update(questions=len(questions), known=len(set(firsts)) - len(unknown) - len(useless))
        with self.narrator.track(label, len(questions)) as advance:
            advance(done)
            with closing(self._heard(work, unknown, useless)) as answers:
                for number, answer in answers:
                    check(number, answer)  # before it is kept: a plugin that is mended must be asked again
                    if isinstance(answer, Failure):
                        failures[number] = answer
                    else:
                        self.bench.answers.put(questions[number], plain(answer))
                    if why := answer.reason if isinstance(answer, Failure) else unread(number, answer):
                        lost[number] = why
                        self._check_lost(lost, max_failed, len(questions), label)
                    self._spend(answer.cost)
                    done += 1
                    advance(done)
        if lost:
            self.narrator.say(f"{label}: {len(lost):,} of {len(questions):,} have failed:\n{_told(lost)}")
        failures |= {number: failures[first] for number, first in enumerate(firsts) if first in failures}
        self.asked.update(failed=len(failures))
        return Answered(self.bench.answers, questions, read, failures)

    def _unknown(
        self,
        questions: Sequence[Any],
        numbers: Sequence[int],
        read: Callable[[Mapping[str, Any]], Answer],
        unread: Callable[[int, Any], str],
    ) -> tuple[list[int], list[int]]:
        """The questions without an answer, and those whose answer is of no use."""
        unknown, useless = [], []
        for number in numbers:
            answer = self.bench.answers.get(questions[number])
            # Known, but not for how much: who gave it knows, and asks nobody for that.
            if answer is None or (self.max_cost is not None and read(answer).cost is None):
                unknown.append(number)
            elif unread(number, read(answer)):
                useless.append(number)
            else:
                self._spend(read(answer).cost)
        return unknown, useless

    def _heard(self, work: Work[Answer], unknown: Sequence[int], useless: Sequence[int]) -> Generator[tuple[int, Answer | Failure]]:
        yield from _numbered(lambda numbers: work(numbers, self.bench), unknown)
        if useless:  # who keeps answers too would give the same again
            with TemporaryDirectory() as folder, closing(Answers(Path(folder))) as none:
                bench = replace(self.bench, answers=none)
                yield from _numbered(lambda numbers: work(numbers, bench), useless)

    def _spend(self, cost: float | None) -> None:
        if cost is None and self.max_cost is not None:
            missing = "a completer or judge has no `price`, or does not say what it used"
            raise ZkitError(f"[{self.where}] max_cost = {self.max_cost:g} cannot be held: {missing}")
        self.cost += cost or 0.0
        if self.max_cost is not None and self.cost > self.max_cost:
            raise ZkitError(
                f"[{self.where}] max_cost = {self.max_cost:g}: the answers so far have cost {self.cost:.2f} dollars. "
                "They are kept: the same command goes on when more is allowed"
            )

    def _check_lost(self, lost: Mapping[int, str], max_failed: float, total: int, label: str) -> None:
        if len(lost) <= max_failed * total:
            return
        raise ZkitError(
            f"[{self.where}] {label}: {len(lost):,} of {total:,} requests have failed, more than max_failed = {max_failed:g} "
            f"allows:\n{_told(lost)}\nthe answers so far are kept: the same command goes on when that is mended"
        )


def _told(lost: Mapping[int, str]) -> str:
    """The most common reasons, each with the particulars of the first that it was."""
    counts = Counter(map(countable, lost.values()))
    whole = {countable(why): why for why in reversed(list(lost.values()))}
    return "\n".join(f"  {count:6,d} x {whole[reason]}" for reason, count in counts.most_common(NUM_REASONS_TOLD))


def _firsts(questions: Sequence[Any]) -> list[int]:
    """For each question, the first that equals it: that one is asked, and paid for, alone."""
    seen: dict[bytes, int] = {}
    return [seen.setdefault(digest(question), number) for number, question in enumerate(questions)]


def _numbered(
    work: Callable[[Sequence[int]], Iterator[tuple[int, Answer | Failure]]], numbers: Sequence[int]
) -> Generator[tuple[int, Answer | Failure]]:
    """Answers under the numbers of their questions; nobody is asked when nothing is unknown."""
    if not numbers:
        return
    left = set(range(len(numbers)))
    for place, answer in work(numbers):
        if place not in left:
            raise ZkitError(f"an answer came under the number {place!r}, which was not asked for, or was answered before")
        left.remove(place)
        yield numbers[place], answer
    for place in sorted(left):
        yield numbers[place], Failure("no answer came")


def _check_reply(who: str, answer: Any) -> None:
    """Refuse what a plugin may not give."""
    if isinstance(answer, Failure):
        return
    if not isinstance(answer, Reply) or not isinstance(answer.text, str):
        raise ZkitError(f"{who} gave {answer!r:.80}, not a Reply or a Failure")


def _check_judgement(who: str, case: Case, answer: Any) -> None:
    if isinstance(answer, Failure):
        return
    if not isinstance(answer, Judgement):
        raise ZkitError(f"{who} gave {answer!r:.80}, not a Judgement or a Failure")
    for name, scores in {"scores": answer.scores, **answer.aspects}.items():
        if len(scores) != len(case.replies):
            raise ZkitError(f"{who} gave {len(scores)} {name} for {len(case.replies)} replies")
        for score in scores:
            if not (isinstance(score, (int, float)) and math.isfinite(score)) and not (score is None and name != "scores"):
                raise ZkitError(f"{who} gave {score!r} among its {name}, not a number")
    if answer.remarks and len(answer.remarks) != len(case.replies):
        raise ZkitError(f"{who} gave {len(answer.remarks)} remarks for {len(case.replies)} replies")


def _asked(request: Request) -> Any:
    """The request in the key of its answer; a setting that came later stands in it where it is used, so that older answers are found."""
    asked = plain(request)
    if not request.sampling.top_k:
        del asked["sampling"]["top_k"]
    return asked


def _reply(answer: Mapping[str, Any]) -> Reply:
    return Reply(**answer)


def _judgement(answer: Mapping[str, Any]) -> Judgement:
    aspects = {name: tuple(scores) for name, scores in answer["aspects"].items()}
    return Judgement(tuple(answer["scores"]), aspects, tuple(answer["remarks"]), answer["cost"])

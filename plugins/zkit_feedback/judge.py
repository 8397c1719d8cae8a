"""The judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt

from zephyr_kit import ZkitError
from zephyr_kit.example import Message
from zephyr_kit.protocols import Bench, Case, Failure, Judgement, Sampling
from zkit_feedback.endpoint import Endpoint, total
from zkit_feedback.grading import Grades, messages, read_grades, schema
from zkit_feedback.rubric import OVERALL, Aspect, Rubric, check_name, read_rubric
from zkit_feedback.trouble import Unusable

if TYPE_CHECKING:
    import torch

    from zkit_feedback.client import Answer
    from zkit_feedback.scripted import ScriptedJudge

SAMPLE = Case((Message("user", "A question?"),), ("One reply.", "Another."))
"""What it is asked about this shows the rubric, and all else that shapes its judgements."""


@dataclass(frozen=True, kw_only=True)
class EndpointJudge(Endpoint):
    """A model behind an OpenAI-compatible endpoint that grades replies by a rubric: a request for each aspect."""

    rubric: str = "ultrafeedback"
    """`ultrafeedback` (four aspects and an overall critique), `overall` (the critique alone), or a TOML file."""
    reasons: bool = True
    """Whether it says why, before each grade."""
    score: Literal["overall", "mean"] | None = None
    """The overall grade, or the mean of the aspects; unless said, the first where the rubric has one."""
    form: Literal["json_schema", "json_object", "text"] = "json_schema"
    """How the endpoint is held to JSON: by a schema, by a promise, or by the words of the request alone."""
    temperature: Annotated[float, Ge(0)] = 0.0
    seed: int = 0
    max_new_tokens: Annotated[int, Gt(0)] = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.rubric)
        if "response_format" in self.extra:
            raise ValueError("`extra.response_format`: is set by `form`")

    def judge(self, cases: Sequence[Case], bench: Bench) -> Iterator[tuple[int, Judgement | Failure]]:
        """A judgement of each case, once all its aspects are graded."""
        from zkit_feedback.client import Question, ask_all

        rubric = self._rubric()
        asked = rubric.asked
        heard: dict[int, dict[str, Answer | Failure]] = {}

        def question(number: int) -> Question:
            case, aspect = cases[number // len(asked)], asked[number % len(asked)]
            check = partial(self._read, aspect, len(case.replies))
            return Question(self.grading_body(aspect, case), check, self.draw(self._sampling))

        for number, answer in ask_all(self, len(cases) * len(asked), question, bench.answers):
            place, part = divmod(number, len(asked))
            heard.setdefault(place, {})[asked[part].name] = answer
            if len(heard[place]) == len(asked):
                yield place, self._judgement(rubric, heard.pop(place), len(cases[place].replies))

    def fingerprint(self) -> Mapping[str, Any]:
        rubric = self._rubric()
        asked = [self.grading_body(aspect, SAMPLE) for aspect in rubric.asked]
        drawn = {"temperature": self.temperature, "seed": self.seed}
        return {**self.named(), **drawn, "rubric": Path(self.rubric).stem, "score": self._score(rubric), "asked": asked}

    def problems(self, device: torch.device) -> Sequence[str]:
        try:
            self._rubric()
        except ZkitError as error:
            return [str(error), *self.reach_problems()]
        return self.reach_problems()

    def miniature(self, folder: Path) -> ScriptedJudge:
        from zkit_feedback.scripted import ScriptedJudge

        return ScriptedJudge(instead_of=self.model)

    def grading_body(self, aspect: Aspect, case: Case) -> dict[str, Any]:
        """The request that has the replies of a case graded for one aspect."""
        body = self.body(messages(aspect, case, reasons=self.reasons), self._sampling)
        wanted = schema(aspect, len(case.replies), reasons=self.reasons)
        forms = {
            "json_schema": {"type": "json_schema", "json_schema": {"name": aspect.name, "strict": True, "schema": wanted}},
            "json_object": {"type": "json_object"},
        }
        return body if self.form == "text" else {**body, "response_format": forms[self.form]}

    @property
    def _sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, temperature=self.temperature, seed=self.seed)

    def _rubric(self) -> Rubric:
        rubric = read_rubric(self.rubric)
        missing = "[overall]" if rubric.overall is None else "[[aspects]]"
        if (self.score == OVERALL and rubric.overall is None) or (self.score == "mean" and not rubric.aspects):
            raise ZkitError(f'score = "{self.score}", but the rubric {self.rubric} has no {missing}; leave `score` out')
        return rubric

    def _score(self, rubric: Rubric) -> str:
        return self.score or (OVERALL if rubric.overall else "mean")

    def _read(self, aspect: Aspect, count: int, answer: Answer) -> Grades:
        try:
            return read_grades(answer.text, aspect, count, reasons=self.reasons)
        except Unusable as error:
            if answer.ending == "length":
                raise Unusable("it is longer than max_new_tokens", f"{self.max_new_tokens:,}") from error
            raise

    def _judgement(self, rubric: Rubric, heard: Mapping[str, Answer | Failure], count: int) -> Judgement | Failure:
        answers = {name: answer for name, answer in heard.items() if not isinstance(answer, Failure)}
        failures = {name: answer for name, answer in heard.items() if isinstance(answer, Failure)}
        paid = [*(self.cost(one.num_read, one.num_written) for one in answers.values()), *(one.cost for one in failures.values())]
        cost = total(paid)
        for aspect in rubric.asked:
            if aspect.name in failures:
                return Failure(f"{aspect.name}: {failures[aspect.name].reason}", cost)
        found = {aspect.name: self._read(aspect, count, answers[aspect.name]) for aspect in rubric.asked}
        aspects = {aspect.name: found[aspect.name].grades for aspect in rubric.aspects}
        scores = found[OVERALL].grades if self._score(rubric) == OVERALL else _means(list(aspects.values()))
        if None in scores:
            return Failure("there is a reply that no aspect applies to", cost)
        remarks = _remarks(rubric, found, count) if self.reasons else ()
        return Judgement(tuple(score for score in scores if score is not None), aspects, remarks, cost)


def _means(aspects: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    """The mean of the aspects that apply, for each reply."""
    applying = [[grade for grade in grades if grade is not None] for grades in zip(*aspects, strict=True)]
    return tuple(sum(grades) / len(grades) if grades else None for grades in applying)


def _remarks(rubric: Rubric, found: Mapping[str, Grades], count: int) -> tuple[str, ...]:
    """The critique of each reply; without an overall one, what was said of each aspect."""
    if rubric.overall is not None:
        return found[OVERALL].reasons
    return tuple("\n".join(f"{name}: {found[name].reasons[number]}" for name in found) for number in range(count))

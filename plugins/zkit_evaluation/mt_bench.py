"""The suite `mt-bench`: questions of two turns, graded by a judge as FastChat has it graded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt

from zephyr_kit import ZkitError
from zephyr_kit.config import suggest
from zephyr_kit.fingerprint import file_fingerprint
from zephyr_kit.protocols import INLINE, Completer, Evaluation, Tokenizer
from zkit_evaluation.located import located, located_problems
from zkit_evaluation.replies import Share

if TYPE_CHECKING:
    from zephyr_kit.subjects import Subject
    from zkit_evaluation.examination import Examination

ADVICE = (
    "MT-Bench's 80 questions are not ours to ship: take fastchat/llm_judge/data/mt_bench/question.jsonl of "
    "https://github.com/lm-sys/FastChat"
)
REFERENCES = "FastChat's are in reference_answer/gpt-4.jsonl beside its question.jsonl"
COMPARES = "compares with results that FastChat's prompts and this judge have given"
COMPARES_NOT = "not by FastChat's prompts and reference answers both, so it compares only with results made like this"


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Who judges, asked in words; the other keys of its table are the completer's own."""

    completer: Completer = field(metadata={INLINE: True})
    temperature: Annotated[float, Ge(0)] = 0.0
    max_new_tokens: Annotated[int, Gt(0)] = 2048

    @property
    def name(self) -> str:
        """For the names of files: the endpoint's model, if it is one."""
        model = getattr(self.completer, "model", None)
        return model if isinstance(model, str) else type(self.completer).__name__


@dataclass(frozen=True, kw_only=True)
class MtBench:
    """MT-Bench (arXiv 2306.05685): two turns, graded from 1 to 10 by a judge, or compared in both orders; in FastChat's files."""

    judge: Examiner
    questions: str = ""
    """FastChat's question.jsonl: a path, or a file of the hub, as hf://datasets/OWNER/NAME/FILE."""
    references: str | None = None
    """FastChat's reference_answer file, for mathematics, reasoning and coding; the questions' own `reference` where it has none."""
    prompts: str | None = None
    """FastChat's judge_prompts.jsonl; our own wording unless given, which gives other grades."""
    answers: tuple[str, ...] = ()
    """`model_answer` files of other models, to be judged beside ours; each is called as its file is."""
    grading: tuple[Literal["single", "pairs"], ...] = ("single",)
    """Each answer by itself, or two by two in both orders, or both."""
    against: str | None = None
    """The model that pairs are made with; all with all, unless named."""
    max_new_tokens: Annotated[int, Gt(0)] = 1024
    seed: Annotated[int, Ge(0)] = 0
    max_failed: Share = 0.02
    """The share of answers, or of judgements, that may fail; those that have are judged as "ERROR", or left out of the means.

    A judgement without a verdict that can be read has failed; another start asks for it again.
    """

    def __post_init__(self) -> None:
        if not self.grading:
            raise ValueError('`grading` = []: should hold "single", "pairs" or both')
        if self.against is not None and "pairs" not in self.grading:
            raise ValueError(f'`against` = "{self.against}": is for pairs; add them to `grading`')

    def problems(self) -> Sequence[str]:
        """Files that are missing, and what stands in the way of the judge."""
        from zephyr_kit.devices import find_device
        from zkit_evaluation.judge_prompts import ADVICE as PROMPTS

        if not self.questions:
            return [f"suite mt-bench: needs `questions`; {ADVICE}"]
        places = [(self.questions, ADVICE), (self.references, REFERENCES), (self.prompts, PROMPTS)]
        places += [(place, "") for place in self.answers]
        found = [line for place, advice in places if place for line in located_problems(place, advice)]
        return [*(f"suite mt-bench: {line}" for line in found), *self.judge.completer.problems(find_device())]

    def fingerprint(self) -> Mapping[str, Any]:
        """The content of the files."""
        places = [self.questions, self.references, self.prompts, *self.answers]
        return {"files": [file_fingerprint(located(place)) for place in places if place]}

    def evaluate(self, models: Mapping[str, Subject], tokenizer: Tokenizer, folder: Path) -> Sequence[Evaluation]:
        """Ask every model, then the judge; answers and judgements stand in `folder` in FastChat's formats."""
        from zkit_evaluation.examination import Examination

        if self.against is not None and self.against not in (names := [*models, *(Path(place).stem for place in self.answers)]):
            raise ZkitError(f"suite mt-bench: against = {self.against!r}: there is no such model{suggest(self.against, names)}")
        examination = Examination(self, models, folder)
        examination.read()
        answers = examination.answers()
        singles = examination.singles(answers) if "single" in self.grading else []
        pairs = examination.pairs(answers) if "pairs" in self.grading else []
        table, *more = self._tables(examination, singles, pairs)
        return [replace(table, samples=examination.samples(answers)), *more]

    def miniature(self, folder: Path) -> MtBench:
        """Four questions of our own, short answers, a judge that is offline, and no failure that is too many."""
        from zkit_evaluation.miniature import write_questions

        judge = replace(self.judge, completer=self.judge.completer.miniature(folder))
        mine: dict[str, Any] = {"questions": str(write_questions(folder)), "references": None, "prompts": None, "answers": ()}
        return replace(self, judge=judge, against=None, max_new_tokens=16, max_failed=1.0, **mine)

    def _tables(self, examination: Examination, singles: Sequence[Any], pairs: Sequence[Any]) -> list[Evaluation]:
        from zkit_evaluation.examination import paired_columns, score_intervals
        from zkit_evaluation.fast_chat import category_scores, single_scores

        comparable = self.prompts is not None and self.references is not None
        remark = f"judged by {self.judge.name}; {COMPARES if comparable else COMPARES_NOT}"
        columns: dict[str, str] = {}
        rows: dict[str, dict[str, float | None]] = {name: {} for name in examination.names}
        found = []
        if singles:
            columns |= {
                "score": f"mean of all grades of both turns, 1 to 10, {remark}",
                "turn 1": "mean grade of the first answers",
                "turn 2": "mean grade of the second answers",
                "unread": "judgements that hold no grade; left out of the means",
            }
            _merge(rows, single_scores(singles))
            categories = {question.id: question.category for question in examination.questions}
            meanings = dict.fromkeys(dict.fromkeys(categories.values()), "mean grade of the category's questions, both turns")
            of_categories = category_scores(singles, categories)
            found.append(Evaluation("MT-Bench categories", meanings, of_categories))
        if pairs:
            whom = "every other model" if self.against is None else self.against
            columns |= paired_columns(f"{whom}, both orders; {remark}")
            _merge(rows, examination.paired(pairs))
        intervals = score_intervals(singles, seed=self.seed)
        return [Evaluation("MT-Bench", columns, rows, intervals=intervals), *found]


def _merge(rows: dict[str, dict[str, float | None]], more: Mapping[str, Mapping[str, float | None]]) -> None:
    for name, values in more.items():
        rows[name] |= values

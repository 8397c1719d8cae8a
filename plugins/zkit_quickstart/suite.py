"""The quickstart's evaluation: stories that were never asked for in training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from zephyr_kit import ZkitError
from zephyr_kit.answers import Answers
from zephyr_kit.cache import cache_folder
from zephyr_kit.config import default_use, suggest
from zephyr_kit.example import Example, Message
from zephyr_kit.protocols import Bench, Case, Evaluation, Failure, Judge, Judgement, Policy, Sampling, Tokenizer
from zkit_quickstart.judge import points
from zkit_quickstart.source import QuickstartData

if TYPE_CHECKING:
    import torch

    from zkit_quickstart.measure import Measured

NUM_SAMPLES = 3

Positive = Annotated[int, Gt(0)]

Enter = Callable[[], AbstractContextManager[Policy]]
"""Loads a model for as long as the context lasts."""


@dataclass(frozen=True, kw_only=True)
class QuickstartSuite:
    """Compares models on wishes held out from training: loss, points, wins and preferences."""

    prompts: Positive = 100
    """How many held-out wishes each model answers."""
    pairs: Positive = 200
    """How many held-out preference pairs each model scores."""
    seed: int = 0
    against: str = "sft"
    """The model that the others are compared with."""
    max_new_tokens: Positive = 120
    temperature: Annotated[float, Ge(0)] = 0.7
    judge: Judge = default_use("quickstart")

    def problems(self) -> Sequence[str]:
        """Nothing: it makes its own questions."""
        return []

    def evaluate(self, models: Mapping[str, Enter], tokenizer: Tokenizer, folder: Path) -> Evaluation:
        """Measure each model, loading one at a time; the replies go to `replies.jsonl`."""
        from zkit_quickstart.measure import measure

        if self.against not in models:
            raise ZkitError(f"suite quickstart: against = {self.against!r}: there is no such stage{suggest(self.against, models)}")
        chats = list(QuickstartData("chat", "held_out", self.prompts, self.seed).rows())
        pairs = list(QuickstartData("preference", "held_out", self.pairs, self.seed).rows())
        dialogues = [last_question(chat) for chat in chats]
        sampling = Sampling(self.max_new_tokens, self.temperature, seed=self.seed)
        answers: dict[str, Measured] = {}
        for name, enter in models.items():
            with enter() as policy:
                device = next(policy.module.parameters()).device
                answers[name] = measure(policy, tokenizer, chats, pairs, dialogues=dialogues, sampling=sampling)
            del policy  # or two models would be held at once
        scores = judge_replies(self.judge, dialogues, {name: given.texts for name, given in answers.items()}, device=device)
        keep_replies(folder / "replies.jsonl", dialogues, {name: given.texts for name, given in answers.items()})
        rows = {name: self._row(name, answers, scores) for name in answers}
        return Evaluation("Stories never asked for in training", self._columns(), rows, samples(dialogues, answers))

    def miniature(self, folder: Path) -> QuickstartSuite:
        """A few wishes and pairs, short answers, and a judge that is offline."""
        few = replace(self, prompts=min(self.prompts, 4), pairs=min(self.pairs, 4), max_new_tokens=min(self.max_new_tokens, 8))
        return replace(few, judge=self.judge.miniature(folder))

    @property
    def _wins(self) -> str:
        return f"wins over {self.against}"

    def _row(self, name: str, answers: Mapping[str, Measured], scores: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
        compared = name != self.against
        return {
            "loss": answers[name].loss,
            "task score": fmean(scores[name]),
            self._wins: win_rate(scores[name], scores[self.against]) if compared else None,
            "reward accuracy": share_above(answers[name].margins, answers[self.against].margins) if compared else None,
        }

    def _columns(self) -> dict[str, str]:
        return {
            "loss": "surprise per token at the teacher's answers; lower is better at imitating it, flaws and all",
            "task score": "the judge's mean points for its own answers, 0 to 10",
            self._wins: f"share of wishes where its answer scores higher than that of {self.against}; a tie counts half",
            "reward accuracy": f"share of pairs where it leans to the better answer more than {self.against} does",
        }


def last_question(chat: Example) -> tuple[Message, ...]:
    """The dialogue up to, and without, the last answer."""
    return (*chat.prompt, *chat.completions[0])[:-1]


def judge_replies(
    judge: Judge, dialogues: Sequence[tuple[Message, ...]], replies: Mapping[str, Sequence[str]], *, device: torch.device
) -> dict[str, list[float]]:
    """The score of each model's reply to each dialogue."""
    cases = [Case(dialogue, (reply,)) for texts in replies.values() for dialogue, reply in zip(dialogues, texts, strict=True)]
    with closing(Answers(cache_folder("answers"))) as paid_for:
        judgements = dict(judge.judge(cases, Bench(device, paid_for)))
    found = iter([_score(judgements[number]) for number in range(len(cases))])
    return {name: list(islice(found, len(dialogues))) for name in replies}


def _score(judgement: Judgement | Failure) -> float:
    if isinstance(judgement, Failure):
        raise ZkitError(f"suite quickstart: a reply could not be judged: {judgement.reason}")
    return judgement.scores[0]


def win_rate(scores: Sequence[float], others: Sequence[float]) -> float:
    """Share of scores above the others'; ties count half."""
    return fmean(0.5 if score == other else float(score > other) for score, other in zip(scores, others, strict=True))


def share_above(margins: Sequence[float], reference: Sequence[float]) -> float:
    """Share of pairs whose implicit reward is higher for the chosen answer (DPO, Rafailov et al. 2023, eq. 5)."""
    return fmean(float(margin > other) for margin, other in zip(margins, reference, strict=True))


def keep_replies(path: Path, dialogues: Sequence[Sequence[Message]], replies: Mapping[str, Sequence[str]]) -> None:
    """A line for each model and wish: the reply, and its points by rule."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for model, texts in replies.items():
            for dialogue, reply in zip(dialogues, texts, strict=True):
                record = {"model": model, "prompt": as_text(dialogue), "reply": reply, "points": points(dialogue, reply)}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def samples(dialogues: Sequence[Sequence[Message]], answers: Mapping[str, Measured]) -> list[dict[str, str]]:
    """The first few wishes of a single turn, with each model's reply."""
    short = [number for number, dialogue in enumerate(dialogues) if len(dialogue) == 1][:NUM_SAMPLES]
    said = [{name: given.replies[number].shown for name, given in answers.items()} for number in short]
    return [{"prompt": as_text(dialogues[number]), **replies} for number, replies in zip(short, said, strict=True)]


def as_text(dialogue: Sequence[Message]) -> str:
    """A dialogue to be read: a single question as it is, more turns with who says them."""
    if len(dialogue) == 1:
        return dialogue[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in dialogue)

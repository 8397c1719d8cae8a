"""The replies to a prompt that may become a pair, and what becomes of each."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from zephyr_kit.binarise import Binarise, Paired
from zephyr_kit.example import Example, Message
from zephyr_kit.prompts import Prompt
from zephyr_kit.protocols import Case, Failure, Judgement, Reply
from zephyr_kit.tally import countable


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the samples that a prompt may get."""

    completer: int
    """Which of the stage's completers."""
    sample: int
    seed: int


@dataclass(frozen=True)
class Candidates:
    """The replies to one prompt, slot by slot."""

    prompt: Prompt
    slots: Sequence[Slot]
    replies: Sequence[Reply | Failure]
    keep_unfinished: bool

    @cached_property
    def fates(self) -> list[str]:
        """What becomes of each reply: `judged`, or why it is not."""
        seen: set[str] = set()
        return [self._fate(reply, seen) for reply in self.replies]

    @cached_property
    def texts(self) -> list[str]:
        """What is judged, in the order of the slots."""
        return [reply.text for reply, fate in zip(self.replies, self.fates, strict=True) if isinstance(reply, Reply) and fate == "judged"]

    @property
    def case(self) -> Case | None:
        """What the judge sees, in an order of its own: a judge may lean to the first. None when there is nothing to compare."""
        shown = [self.texts[place] for place in self.order]
        return Case(self.prompt.dialogue, tuple(shown)) if len(shown) > 1 else None

    @cached_property
    def order(self) -> list[int]:
        """Which of the texts the judge sees first, second and so on."""
        order = list(range(len(self.texts)))
        random.Random(f"order {self.prompt.id}").shuffle(order)  # noqa: S311  no secret
        return order

    def in_order_of_slots(self, judgement: Judgement) -> Judgement:
        """A judgement of `case`, its replies as in `texts`."""
        return reordered(judgement, [self.order.index(place) for place in range(len(self.order))])

    def paired(self, judgement: Judgement | Failure | None, rule: Binarise, row: int) -> Paired:
        """The pairs that come of it."""
        if judgement is None:
            return Paired((), (), "fewer than two different replies")
        if isinstance(judgement, Failure):
            return Paired((), (), f"not judged: {judgement.reason}")
        completions = tuple((Message("assistant", text),) for text in self.texts)
        scores = self.in_order_of_slots(judgement).scores
        return rule.apply(Example(self.prompt.dialogue, completions, scores, self.prompt.origin), row)

    def slot_of(self, text: str) -> int:
        """The reply that said this first."""
        judged = (number for number, fate in enumerate(self.fates) if fate == "judged")
        return next(number for number, said in zip(judged, self.texts, strict=True) if said == text)

    def _fate(self, reply: Reply | Failure, seen: set[str]) -> str:
        if isinstance(reply, Failure):
            return "failed"
        if not reply.text.strip():
            return "blank"
        if not reply.finished and not self.keep_unfinished:
            return "unfinished"
        if reply.text in seen:
            return "repeated"
        seen.add(reply.text)
        return "judged"


@dataclass
class FeedbackLedger:
    """What became of every prompt and reply: `prompts` = `paired` + `unpaired`; the `fates` add up to `replies`."""

    prompts: int = 0
    paired: int = 0
    unpaired: int = 0
    pairs: int = 0
    replies: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    unpaired_reasons: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """Why replies failed."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Why judged replies were not considered for a pair."""

    def enter(self, candidates: Candidates, paired: Paired) -> None:
        """Count one prompt."""
        self.prompts += 1
        self.paired += bool(paired.examples)
        self.unpaired += not paired.examples
        self.pairs += len(paired.examples)
        self.replies += len(candidates.replies)
        self.fates.update(candidates.fates)
        self.failures.update(countable(reply.reason) for reply in candidates.replies if isinstance(reply, Failure))
        self.left_out.update(paired.left_out)
        if not paired.examples:
            self.unpaired_reasons[countable(paired.reason)] += 1

    def facts(self) -> dict[str, Any]:
        """JSON values."""
        counted = ("fates", "unpaired_reasons", "failures", "left_out")
        return {**vars(self), **{key: dict(getattr(self, key).most_common()) for key in counted}}


def reordered(judgement: Judgement, order: Sequence[int]) -> Judgement:
    """A judgement with its replies in another order."""
    aspects = {name: tuple(scores[place] for place in order) for name, scores in judgement.aspects.items()}
    remarks = tuple(judgement.remarks[place] for place in order) if judgement.remarks else ()
    return Judgement(tuple(judgement.scores[place] for place in order), aspects, remarks, judgement.cost)

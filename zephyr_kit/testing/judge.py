"""Laws of judges."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from zephyr_kit.answers import Answers
from zephyr_kit.example import Message
from zephyr_kit.protocols import Bench, Case, Judge, Judgement


class JudgeLaws:
    """What win rates and feedback rely on."""

    judge: Judge
    dialogue: tuple[Message, ...]
    better: str
    worse: str
    device: ClassVar[torch.device] = torch.device("cpu")

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        """A bench without a model of its own, and nothing paid for yet."""
        with closing(Answers(tmp_path / "answers")) as answers:
            yield Bench(self.device, answers)

    def test_prefers_the_better_reply_in_either_order(self, bench: Bench) -> None:
        """A judge with a taste for the first reply is no judge."""
        first, second = self._judged(bench, [self.better, self.worse], [self.worse, self.better])
        assert first.scores[0] > first.scores[1]
        assert second.scores[0] < second.scores[1]

    def test_says_something_of_each_reply(self, bench: Bench) -> None:
        """One for one: scores, and aspects and remarks where it has them."""
        (judgement,) = self._judged(bench, [self.better, self.worse, self.better])
        assert len(judgement.scores) == 3
        assert all(len(scores) == 3 for scores in judgement.aspects.values())
        assert len(judgement.remarks) in (0, 3)

    def test_judges_a_single_reply(self, bench: Bench) -> None:
        """An evaluation asks for one at a time."""
        (judgement,) = self._judged(bench, [self.better])
        assert len(judgement.scores) == 1

    def test_accounts_for_every_case_once(self, bench: Bench) -> None:
        """Under its number, whatever the order."""
        cases = [Case(self.dialogue, (self.better, self.worse)), Case(self.dialogue, (self.worse,)), Case(self.dialogue, (self.better,))]
        found = list(self.judge.judge(cases, bench))
        assert sorted(number for number, _ in found) == [0, 1, 2]
        for number, judgement in found:
            assert not isinstance(judgement, Judgement) or len(judgement.scores) == len(cases[number].replies)

    def test_judges_the_same_each_time(self, bench: Bench) -> None:
        """A judgement is kept, and stands for every later one."""
        replies = [self.better, self.worse]
        first, second = self._judged(bench, replies, replies)
        (again,) = self._judged(bench, replies)
        assert first.scores == second.scores == again.scores

    def test_has_a_fingerprint_that_stays(self) -> None:
        """JSON values; judgements are kept under it."""
        found = dict(self.judge.fingerprint())
        assert json.loads(json.dumps(found)) == found == dict(copy.deepcopy(self.judge).fingerprint())

    def test_has_no_problems_when_it_can_judge(self) -> None:
        """The preflight may not cry wolf."""
        assert not self.judge.problems(self.device)

    def test_miniature_judges_too(self, bench: Bench, tmp_path: Path) -> None:
        """`--smoke` runs it, offline."""
        cases = [Case(self.dialogue, (self.better, self.worse))]
        ((_, judgement),) = self.judge.miniature(tmp_path).judge(cases, bench)
        assert isinstance(judgement, Judgement)
        assert len(judgement.scores) == 2

    def _judged(self, bench: Bench, *replies: list[str]) -> list[Judgement]:
        """A judgement for each list of replies."""
        found = dict(self.judge.judge([Case(self.dialogue, tuple(texts)) for texts in replies], bench))
        judgements = [found[number] for number in range(len(replies))]
        assert all(isinstance(judgement, Judgement) for judgement in judgements), judgements
        return [judgement for judgement in judgements if isinstance(judgement, Judgement)]

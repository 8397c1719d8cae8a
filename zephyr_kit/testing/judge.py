"""Laws of judges."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar

import torch

from zephyr_kit.answers import Answers
from zephyr_kit.example import Message
from zephyr_kit.protocols import Bench, Case, Failure, Judge, Judgement
from zephyr_kit.testing.offer import OfferLaws


class JudgeLaws(OfferLaws):
    """What win rates and feedback rely on."""

    subject = "judge"
    title = "Judges"
    judge: Judge
    dialogue: tuple[Message, ...]
    better: str
    worse: str
    device: ClassVar[torch.device] = torch.device("cpu")

    @contextmanager
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        """A bench without a model of its own, and nothing paid for yet."""
        with closing(Answers(tmp_path / "answers")) as answers:
            yield Bench(self.device, answers)

    def test_prefers_the_better_reply_in_either_order(self, tmp_path: Path) -> None:
        """It prefers the better reply, whichever comes first.

        Without it, a taste for the first reply becomes the preference that the model learns.
        """
        first, second = self._judged(tmp_path, [self.better, self.worse], [self.worse, self.better])
        assert first.scores[0] > first.scores[1]
        assert second.scores[0] < second.scores[1]

    def test_says_something_of_each_reply(self, tmp_path: Path) -> None:
        """It says something of each reply, one for one: scores, and aspects and remarks where it has them.

        Without it, a remark stands under another reply.
        """
        (judgement,) = self._judged(tmp_path, [self.better, self.worse, self.better])
        assert len(judgement.scores) == 3
        assert all(len(scores) == 3 for scores in judgement.aspects.values())
        assert len(judgement.remarks) in (0, 3)

    def test_judges_a_single_reply(self, tmp_path: Path) -> None:
        """It judges a single reply.

        Without it, evaluations, which ask for one at a time, cannot use it.
        """
        (judgement,) = self._judged(tmp_path, [self.better])
        assert len(judgement.scores) == 1

    def test_accounts_for_every_case_once(self, tmp_path: Path) -> None:
        """Every case is accounted for once, under its number, in any order.

        Without it, a prompt loses its judgement, or gets that of another.
        """
        cases = [Case(self.dialogue, (self.better, self.worse)), Case(self.dialogue, (self.worse,)), Case(self.dialogue, (self.better,))]
        found = self._found(self.judge, cases, tmp_path)
        assert sorted(number for number, _ in found) == [0, 1, 2]
        for number, judgement in found:
            assert not isinstance(judgement, Judgement) or len(judgement.scores) == len(cases[number].replies)

    def test_judges_the_same_each_time(self, tmp_path: Path) -> None:
        """It judges the same each time.

        Without it, a judgement that was kept says what nobody would say again.
        """
        replies = [self.better, self.worse]
        first, second = self._judged(tmp_path, replies, replies)
        (again,) = self._judged(tmp_path, replies)
        assert first.scores == second.scores == again.scores

    def test_has_a_fingerprint_that_stays(self) -> None:
        """Its fingerprint is made of JSON values, and stays.

        Without it, judgements that were paid for are not found again.
        """
        found = dict(self.judge.fingerprint())
        assert json.loads(json.dumps(found)) == found == dict(copy.deepcopy(self.judge).fingerprint())

    def test_has_no_problems_when_it_can_judge(self) -> None:
        """`problems` is empty when it can judge.

        Without it, the preflight refuses presets that would have run.
        """
        assert not self.judge.problems(self.device), self.judge.problems(self.device)

    def test_miniature_judges_too(self, tmp_path: Path) -> None:
        """Its miniature judges too, offline.

        Without it, `--smoke` cannot try the stage.
        """
        cases = [Case(self.dialogue, (self.better, self.worse))]
        ((_, judgement),) = self._found(self.judge.miniature(tmp_path), cases, tmp_path)
        assert isinstance(judgement, Judgement)
        assert len(judgement.scores) == 2

    def _judged(self, tmp_path: Path, *replies: list[str]) -> list[Judgement]:
        """A judgement for each list of replies."""
        found = dict(self._found(self.judge, [Case(self.dialogue, tuple(texts)) for texts in replies], tmp_path))
        judgements = [found[number] for number in range(len(replies))]
        assert all(isinstance(judgement, Judgement) for judgement in judgements), judgements
        return [judgement for judgement in judgements if isinstance(judgement, Judgement)]

    def _found(self, judge: Judge, cases: Sequence[Case], tmp_path: Path) -> list[tuple[int, Judgement | Failure]]:
        with self.bench(tmp_path) as bench:
            return list(judge.judge(cases, bench))

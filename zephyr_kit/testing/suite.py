"""Laws of evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from zephyr_kit.answers import Answers
from zephyr_kit.config import plain
from zephyr_kit.evaluating import as_found, evaluate
from zephyr_kit.evaluations import read_evaluation
from zephyr_kit.observe import Silent
from zephyr_kit.protocols import Evaluation, Policy, Start, Suite
from zephyr_kit.subjects import Subject
from zephyr_kit.testing.offer import OfferLaws
from zephyr_kit.testing.stand_ins import TableBackend

Measure = Callable[[Suite, Mapping[str, Subject], Path], list[Evaluation]]


@dataclass(frozen=True)
class _Watched(Subject):
    """A model that tells when it is opened and closed."""

    name: str = ""
    told: list[str] = field(default_factory=list)

    @contextmanager
    def __call__(self) -> Iterator[Policy]:
        self.told.append(f"open {self.name}")
        with super().__call__() as policy:
            yield policy
        self.told.append(f"close {self.name}")


class SuiteLaws(OfferLaws):
    """What a stage that measures relies on. The suite is tried in miniature, on stand-ins for models."""

    subject = "suite"
    title = "Evaluations"
    suite: Suite
    names: tuple[str, ...] = ("base", "sft", "dpo")
    """The models that it is given, each trained from the one before."""
    device: ClassVar[torch.device] = torch.device("cpu")

    def test_measures_every_model(self, tmp_path: Path) -> None:
        """Every model has a row in its tables, in their order, and each column says in a few words what it means.

        Without it, the report leaves out a stage, or shows a figure that nobody can read.
        """
        evaluations = self._evaluations(tmp_path)
        assert {name for evaluation in evaluations for name in evaluation.rows} >= set(self.names)
        for evaluation in evaluations:
            measured = [name for name in evaluation.rows if name in self.names]
            assert measured == sorted(measured, key=self.names.index)
            assert evaluation.title
            assert evaluation.columns
            assert all(meaning.strip() for meaning in evaluation.columns.values())

    def test_measures_are_numbers(self, tmp_path: Path) -> None:
        """A cell is a finite number, or None where the measure does not apply; and is in a column that is explained.

        Without it, the report says that nothing was measured, or hides what was.
        """
        for evaluation in self._evaluations(tmp_path, measure=as_found):
            for model, row in evaluation.rows.items():
                assert set(row) <= set(evaluation.columns), f"{model}: {set(row) - set(evaluation.columns)} is no column"
                assert all(value is None or math.isfinite(value) for value in row.values()), f"{model}: {row}"

    def test_intervals_hold_what_was_measured(self, tmp_path: Path) -> None:
        """Where it says between what a value may lie, the value does.

        Without it, models are told apart, or not, by a mistake.
        """
        for evaluation in self._evaluations(tmp_path):
            for model, ends in evaluation.intervals.items():
                for measure, (low, high) in ends.items():
                    value = evaluation.rows[model][measure]
                    assert value is not None, f"{model}: {measure} has an interval and no value"
                    assert low <= value <= high, f"{model}: {measure} is {value}, not between {low} and {high}"

    def test_holds_one_model_at_a_time(self, tmp_path: Path) -> None:
        """Every model is opened, one after another, and given back.

        Without it, two large models are on a device that has room for one.
        """
        told: list[str] = []
        self._evaluations(tmp_path, told)
        assert {word.split()[1] for word in told} == set(self.names)
        assert all((one.split()[0], other.split()[0]) == ("open", "close") for one, other in zip(told[::2], told[1::2], strict=True)), told

    def test_measures_the_same_each_time(self, tmp_path: Path) -> None:
        """The same models get the same figures.

        Without it, two presets are compared by luck.
        """
        assert plain(self._evaluations(tmp_path / "one")) == plain(self._evaluations(tmp_path / "other"))

    def test_its_result_can_be_kept(self, tmp_path: Path) -> None:
        """An evaluation goes through JSON and comes back equal.

        Without it, a finished stage cannot be read again.
        """
        for evaluation in self._evaluations(tmp_path):
            assert plain(read_evaluation(json.loads(json.dumps(plain(evaluation), allow_nan=False)))) == plain(evaluation)

    def test_has_no_problems_when_it_can_measure(self) -> None:
        """`problems` is empty when it can measure.

        Without it, the preflight refuses presets that would have run.
        """
        assert not self.suite.problems(), self.suite.problems()

    def _evaluations(self, folder: Path, told: list[str] | None = None, measure: Measure = evaluate) -> list[Evaluation]:
        folder.mkdir(exist_ok=True)
        small = self.suite.miniature(folder / "miniature")
        with closing(Answers(folder / "answers")) as answers:
            return measure(small, self._models(answers, [] if told is None else told), folder / "evaluation")

    def _models(self, answers: Answers, told: list[str]) -> Mapping[str, Subject]:
        found: dict[str, Subject] = {}
        before: Subject | None = None
        for seed, name in enumerate(self.names):
            before = found[name] = _Watched(TableBackend(seed), Start(), self.device, answers, Silent(), before, name, told)
        return found

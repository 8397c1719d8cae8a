"""Laws of evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from zephyr_kit.config import plain
from zephyr_kit.protocols import Evaluation, Policy, Suite, Tokenizer
from zephyr_kit.testing.offer import OfferLaws
from zephyr_kit.testing.stand_ins import NUM_BYTES, ByteTokenizer, TablePolicy

Models = Mapping[str, Callable[[], AbstractContextManager[Policy]]]


class SuiteLaws(OfferLaws):
    """What a stage that measures relies on. The suite is tried in miniature, on stand-ins for models."""

    subject = "suite"
    title = "Evaluations"
    suite: Suite
    names: tuple[str, ...] = ("base", "sft", "dpo")
    """The stages whose models it is given."""
    tokenizer: Tokenizer = ByteTokenizer()

    def test_measures_every_model(self, tmp_path: Path) -> None:
        """Its table has a row for each model, in their order, and says in a few words what each column means.

        Without it, the report leaves out a stage, or shows a figure that nobody can read.
        """
        evaluation = self._evaluation(tmp_path)
        assert tuple(evaluation.rows) == self.names
        assert evaluation.title
        assert evaluation.columns
        assert all(meaning.strip() for meaning in evaluation.columns.values())

    def test_measures_are_numbers(self, tmp_path: Path) -> None:
        """A cell is a finite number, or None where the measure does not apply; and is in a column that is explained.

        Without it, the report says `nan`, or hides what was measured.
        """
        evaluation = self._evaluation(tmp_path)
        for model, row in evaluation.rows.items():
            assert set(row) <= set(evaluation.columns), f"{model}: {set(row) - set(evaluation.columns)} is no column"
            assert all(value is None or math.isfinite(value) for value in row.values()), f"{model}: {row}"

    def test_holds_one_model_at_a_time(self, tmp_path: Path) -> None:
        """Every model is opened, one after another, and given back.

        Without it, two large models are on a device that has room for one.
        """
        told: list[str] = []
        self._evaluation(tmp_path, told)
        assert {word.split()[1] for word in told} == set(self.names)
        assert all((one.split()[0], other.split()[0]) == ("open", "close") for one, other in zip(told[::2], told[1::2], strict=True)), told

    def test_measures_the_same_each_time(self, tmp_path: Path) -> None:
        """The same models get the same figures.

        Without it, two presets are compared by luck.
        """
        assert plain(self._evaluation(tmp_path / "one")) == plain(self._evaluation(tmp_path / "other"))

    def test_its_result_can_be_kept(self, tmp_path: Path) -> None:
        """The evaluation goes through JSON and comes back equal.

        Without it, a finished stage cannot be read again.
        """
        evaluation = plain(self._evaluation(tmp_path))
        assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
        assert plain(Evaluation(**evaluation)) == evaluation

    def test_has_no_problems_when_it_can_measure(self) -> None:
        """`problems` is empty when it can measure.

        Without it, the preflight refuses presets that would have run.
        """
        assert not self.suite.problems(), self.suite.problems()

    def _evaluation(self, folder: Path, told: list[str] | None = None) -> Evaluation:
        folder.mkdir(exist_ok=True)
        small = self.suite.miniature(folder / "miniature")
        return small.evaluate(self._models([] if told is None else told), self.tokenizer, folder)

    def _models(self, told: list[str]) -> Models:
        def opener(name: str) -> Callable[[], AbstractContextManager[Policy]]:
            @contextmanager
            def opened() -> Iterator[Policy]:
                told.append(f"open {name}")
                yield TablePolicy(vocabulary=NUM_BYTES + 1)
                told.append(f"close {name}")

            return opened

        return {name: opener(name) for name in self.names}

"""Laws of filters."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from zephyr_kit.example import Example
from zephyr_kit.protocols import Filter, Memory, Verdict

Met = Sequence[tuple[int, Verdict, str]]


def _keep(memory: Memory) -> None:
    memory.keep()


def _lose(memory: Memory) -> None:
    """Nothing: what was met since is not kept."""


class FilterLaws:
    """What the engine relies on when it filters in many processes, and goes on after it was killed."""

    filter: Filter
    rows: Sequence[Example]
    """With some that it removes or changes, and some that it leaves."""

    def test_is_a_frozen_dataclass(self) -> None:
        """A preset's table is its constructor call."""
        assert dataclasses.is_dataclass(type(self.filter))
        parameters: Any = vars(type(self.filter))["__dataclass_params__"]
        assert parameters.frozen

    def test_looks_at_each_example_alone(self) -> None:
        """Workers see the rows in any order."""
        forwards = [self.filter.look(row) for row in self.rows]
        backwards = [self.filter.look(row) for row in reversed(self.rows)]
        assert forwards == backwards[::-1]

    def test_works_in_another_process(self) -> None:
        """Before and after it has looked at a row."""
        for used in (copy.deepcopy(self.filter), self.filter):
            again = pickle.loads(pickle.dumps(used))  # noqa: S301  our own bytes
            assert again.fingerprint() == self.filter.fingerprint()
            assert [again.look(row) for row in self.rows] == [self.filter.look(row) for row in self.rows]

    def test_gives_a_reason_if_and_only_if_it_does_something(self) -> None:
        """What is changed or removed is counted by reason."""
        for row in self.rows:
            verdict = self.filter.look(row)
            assert bool(verdict.reason) == (verdict.example != row)

    def test_reasons_can_be_counted(self) -> None:
        """A reason that names the row is a reason of its own for each row."""
        reasons = {self.filter.look(row).reason for row in self.rows}
        assert reasons != {""} or self._removes_by_memory()
        assert all(row.origin not in reason for row in self.rows if row.origin for reason in reasons)

    def test_leaves_some_as_they_are(self) -> None:
        """Else a wrong filter would pass these laws."""
        assert any(self.filter.look(row).reason == "" for row in self.rows)

    def test_leaves_origin_scores_and_roles(self) -> None:
        """Every row leads back to where it stood, and a pair stays a pair."""
        for row in self.rows:
            kept = self.filter.look(row).example
            if kept is not None:
                assert (kept.origin, kept.scores, _roles(kept)) == (row.origin, row.scores, _roles(row))

    def test_has_a_fingerprint_that_stays(self) -> None:
        """It names what is kept of its work."""
        assert self.filter.fingerprint() == copy.deepcopy(self.filter).fingerprint()

    def test_has_no_problems_when_it_can_work(self) -> None:
        """The preflight may not cry wolf."""
        assert not self.filter.problems()

    def test_miniature_works_offline(self, tmp_path: Path) -> None:
        """`--smoke` tries it."""
        small = self.filter.miniature(tmp_path)
        assert not small.problems()
        assert [isinstance(small.look(row), Verdict) for row in self.rows] == [True] * len(self.rows)

    def test_memory_goes_on_where_it_was_kept(self, tmp_path: Path) -> None:
        """Killed half-way, with rows met that were not kept, or kept that were not counted, it ends the same."""
        met = self._met()
        half = len(met) // 2
        whole = self._answers(tmp_path / "whole", met)
        for name, stop in (("lost", _lose), ("kept", _keep)):
            before = self._answers(tmp_path / name, met[:half], rest=met[half:], stop=stop)
            assert before + self._answers(tmp_path / name, met[half:]) == whole

    def test_memory_does_not_ask_for_rows_twice(self, tmp_path: Path) -> None:
        """Rows that were removed before it leave gaps in the numbers."""
        met = self._met()
        gaps = [(3 * number, verdict, origin) for number, verdict, origin in met]
        assert self._answers(tmp_path / "gaps", gaps) == self._answers(tmp_path / "none", met)

    def _met(self) -> list[tuple[int, Verdict, str]]:
        """The rows that pass, as the memory meets them."""
        verdicts = [(number, self.filter.look(row), row.origin) for number, row in enumerate(self.rows)]
        return [each for each in verdicts if each[1].example is not None]

    def _answers(self, folder: Path, met: Met, *, rest: Met = (), stop: Callable[[Memory], None] = _keep) -> list[str]:
        """What the memory says of each row; then `rest` is met as well before it is stopped."""
        folder.mkdir(parents=True, exist_ok=True)
        context = self.filter.memory(folder, first=met[0][0])
        if context is None:
            return [""] * len(met)
        with context as memory:
            answers = _meet(memory, met)
            memory.keep()
            _meet(memory, rest)
            stop(memory)
        return answers

    def _removes_by_memory(self) -> bool:
        return any(self.filter.look(row).trace for row in self.rows)


def _meet(memory: Memory, met: Iterable[tuple[int, Verdict, str]]) -> list[str]:
    return [memory.meet(row, verdict.trace, origin) for row, verdict, origin in met]


def _roles(example: Example) -> list[list[str]]:
    return [[message.role for message in messages] for messages in (example.prompt, *example.completions)]

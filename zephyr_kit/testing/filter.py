"""Laws of filters."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st

from zephyr_kit.example import Example
from zephyr_kit.protocols import Filter, Memory, Verdict
from zephyr_kit.testing.offer import OfferLaws
from zephyr_kit.testing.strategies import PIECES, examples, for_all

LOOK = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
one, rows = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps([one.look(row) for row in rows]))
"""
Met = Sequence[tuple[int, Verdict, str]]


def _keep(memory: Memory) -> None:
    memory.keep()


def _lose(memory: Memory) -> None:
    """Nothing: what was met since is not kept."""


class FilterLaws(OfferLaws):
    """What the engine relies on when it filters in many processes, and goes on after it was killed."""

    subject = "filter"
    title = "Filters"
    filter: Filter
    rows: Sequence[Example]
    """With some that it removes or changes, and some that it leaves."""

    cases: ClassVar[int] = 20
    """Draws of further rows on which laws about any row are tried, after its own."""
    completions: ClassVar[tuple[int, int]] = (1, 3)
    """Fewest and most of those rows, for a filter that takes no others."""
    scores: ClassVar[bool | None] = None
    """Whether those rows are scored, for a filter that takes no others; some are if None."""

    def test_looks_at_each_example_alone(self) -> None:
        """What it makes of a row is a function of the row alone.

        Without it, the rows that remain depend on the number of workers.
        """

        def holds(rows: Sequence[Example]) -> None:
            forwards = [self.filter.look(row) for row in rows]
            backwards = [self.filter.look(row) for row in reversed(rows)]
            assert forwards == backwards[::-1]

        self._for_any_rows(holds)

    def test_works_in_another_process(self) -> None:
        """It can be pickled, before and after it has looked at a row, and does the same; in another process too, whatever Python's hashes.

        Without it, it cannot work in worker processes, or each keeps other rows.
        """
        for used in (copy.deepcopy(self.filter), self.filter):
            again = pickle.loads(pickle.dumps(used))  # noqa: S301  our own bytes
            assert again.fingerprint() == self.filter.fingerprint()
            assert [again.look(row) for row in self.rows] == [self.filter.look(row) for row in self.rows]
        if _can_be_imported(type(self.filter).__module__):
            assert _elsewhere(self.filter, self.rows) == [self.filter.look(row) for row in self.rows], "another process makes others"

    def test_gives_a_reason_if_and_only_if_it_does_something(self) -> None:
        """It gives a reason if, and only if, it changes or removes a row.

        Without it, rows vanish, or change, in silence.
        """

        def holds(rows: Sequence[Example]) -> None:
            for row in rows:
                verdict = self.filter.look(row)
                changes = verdict.example != row
                assert bool(verdict.reason) == changes, f"it {'changes or removes' if changes else 'leaves'} a row, for {verdict.reason!r}"

        self._for_any_rows(holds)

    def test_reasons_can_be_counted(self) -> None:
        """Reasons are words that can be counted, and do not name the row.

        Without it, the report has as many reasons as rows.
        """
        reasons = {self.filter.look(row).reason for row in self.rows}
        assert reasons != {""} or self._removes_by_memory()
        assert all(row.origin not in reason for row in self.rows if row.origin for reason in reasons)

    def test_leaves_some_as_they_are(self) -> None:
        """It leaves some rows as they are.

        Without it, a filter that removes everything would pass these laws.
        """
        assert any(self.filter.look(row).reason == "" for row in self.rows)

    def test_leaves_origin_scores_and_roles(self) -> None:
        """It leaves origin, scores and roles.

        Without it, a row no longer leads back to where it stood, or a pair is no pair.
        """

        def holds(rows: Sequence[Example]) -> None:
            for row in rows:
                kept = self.filter.look(row).example
                if kept is not None:
                    assert (kept.origin, kept.scores, _roles(kept)) == (row.origin, row.scores, _roles(row))

        self._for_any_rows(holds)

    def test_has_a_fingerprint_that_stays(self) -> None:
        """Its fingerprint stays.

        Without it, its work is done again at every start.
        """
        assert self.filter.fingerprint() == copy.deepcopy(self.filter).fingerprint()

    def test_has_no_problems_when_it_can_work(self) -> None:
        """`problems` is empty when it can work.

        Without it, the preflight refuses presets that would have run.
        """
        assert not self.filter.problems()

    def test_miniature_works_offline(self, tmp_path: Path) -> None:
        """Its miniature works offline.

        Without it, `--smoke` cannot try the stage.
        """
        small = self.filter.miniature(tmp_path)
        assert not small.problems()
        assert [isinstance(small.look(row), Verdict) for row in self.rows] == [True] * len(self.rows)

    def test_memory_goes_on_where_it_was_kept(self, tmp_path: Path) -> None:
        """Killed half-way, with rows met that were not kept, or kept that were not counted, its memory ends the same.

        Without it, a run that was killed keeps other rows than one that was not.
        """
        met = self._met()
        half = len(met) // 2
        whole = self._answers(tmp_path / "whole", met)
        for name, stop in (("lost", _lose), ("kept", _keep)):
            before = self._answers(tmp_path / name, met[:half], rest=met[half:], stop=stop)
            assert before + self._answers(tmp_path / name, met[half:]) == whole

    def test_memory_does_not_ask_for_rows_twice(self, tmp_path: Path) -> None:
        """Its memory asks for no row twice, though rows that were removed before it leave gaps in the numbers.

        Without it, two filters cannot follow each other.
        """
        met = self._met()
        gaps = [(3 * number, verdict, origin) for number, verdict, origin in met]
        assert self._answers(tmp_path / "gaps", gaps) == self._answers(tmp_path / "none", met)

    def _for_any_rows(self, law: Callable[[Sequence[Example]], None]) -> None:
        """Its own rows, then whatever can be written."""
        law(self.rows)
        row = st.integers(*self.completions).flatmap(lambda number: examples(number, PIECES, scores=self.scores, blank=True))
        for_all(st.lists(row, min_size=1, max_size=4), law, cases=self.cases)

    def _met(self) -> list[tuple[int, Verdict, str]]:
        """The rows that pass, as the memory meets them."""
        verdicts = [(number, self.filter.look(row), row.origin) for number, row in enumerate(self.rows)]
        return [each for each in verdicts if each[1].example is not None]

    def _answers(self, folder: Path, met: Met, *, rest: Met = (), stop: Callable[[Memory], None] = _keep) -> list[str]:
        """What the memory says of each row; then `rest` is met as well before it is stopped."""
        folder.mkdir(parents=True, exist_ok=True)
        context = self.filter.memory(folder, first=met[0][0] if met else 0)
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


def _can_be_imported(module: str) -> bool:
    """What is written in a file of tests may not be."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is here, and nobody knows where from
        return False


def _elsewhere(one: Filter, rows: Sequence[Example]) -> Any:
    """What it makes of the rows in a process in which hashes are others."""
    given = pickle.dumps(sys.path) + pickle.dumps((one, [*rows]))
    other = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", LOOK], input=given, capture_output=True, env=other, check=False)  # noqa: S603  our own
    assert not done.returncode, f"it cannot work in another process: {done.stderr.decode(errors='replace').splitlines()[-1]}"
    return pickle.loads(done.stdout)  # noqa: S301  our own bytes


def _roles(example: Example) -> list[list[str]]:
    return [[message.role for message in messages] for messages in (example.prompt, *example.completions)]

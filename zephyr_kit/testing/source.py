"""Laws of data sources."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from zephyr_kit.example import BadRow, Example, Removed, check
from zephyr_kit.protocols import DataSource


class DataSourceLaws:
    """What the corpus relies on: the same rows each time, and a fingerprint that stands for them."""

    source: DataSource

    def test_reads_the_same_rows_each_time(self) -> None:
        """An order that changes between two readings changes every run."""
        assert list(self.source.rows()) == list(self.source.rows())

    def test_has_a_fingerprint_that_stays(self) -> None:
        """It names the cached corpus."""
        assert self.source.fingerprint() == copy.deepcopy(self.source).fingerprint()

    def test_every_row_says_where_it_stood(self) -> None:
        """A bad row that cannot be found cannot be mended."""
        assert all(row.origin for row in self.source.rows())

    def test_every_row_stands_in_one_of_its_places(self) -> None:
        """Where it tells of them: else a row is named by a file that held the same in an earlier run."""
        places: Sequence[str] = getattr(self.source, "places", tuple)()
        assert not places or all(row.origin.rpartition(":")[0] in places for row in self.source.rows())

    def test_has_no_problems_when_it_can_be_read(self) -> None:
        """The preflight may not cry wolf."""
        assert not self.source.problems()

    def test_rows_are_examples_or_bad_rows(self) -> None:
        """And good rows pass the door; prompts alone, and scored completions, have some way to go before it."""
        for row in self.source.rows():
            assert isinstance(row, (Example, BadRow, Removed))
            if isinstance(row, Example) and row.completions and row.scores is None:
                check(row)

    def test_miniature_has_rows_of_the_same_kind(self, tmp_path: Path) -> None:
        """`--smoke` trains on it, offline, with as many completions."""
        wanted = {len(row.completions) for row in self.source.rows() if isinstance(row, Example)}
        got = {len(row.completions) for row in self.source.miniature(tmp_path).rows() if isinstance(row, Example)}
        assert got == wanted

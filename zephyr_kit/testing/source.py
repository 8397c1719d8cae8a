"""Laws of data sources."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from zephyr_kit.example import BadRow, Example, Removed, check
from zephyr_kit.protocols import DataSource
from zephyr_kit.testing.offer import OfferLaws


class DataSourceLaws(OfferLaws):
    """What the corpus relies on: the same rows each time, and a fingerprint that stands for them."""

    subject = "source"
    title = "Data sources"
    source: DataSource

    def test_reads_the_same_rows_each_time(self) -> None:
        """It reads the same rows, in the same order, each time.

        Without it, no run can be repeated, and one that is resumed skips rows and sees others twice.
        """
        assert list(self.source.rows()) == list(self.source.rows())

    def test_has_a_fingerprint_that_stays(self) -> None:
        """Its fingerprint stays.

        Without it, the data is tokenised again at every start.
        """
        assert self.source.fingerprint() == copy.deepcopy(self.source).fingerprint()

    def test_every_row_says_where_it_stood(self) -> None:
        """Every row says where it stood.

        Without it, a bad row that cannot be found cannot be mended.
        """
        assert all(row.origin for row in self.source.rows())

    def test_every_row_stands_in_one_of_its_places(self) -> None:
        """Every row stands in one of its places, where it tells of them.

        Without it, a row is named by a file that held the same in an earlier run.
        """
        places: Sequence[str] = getattr(self.source, "places", tuple)()
        assert not places or all(row.origin.rpartition(":")[0] in places for row in self.source.rows())

    def test_has_no_problems_when_it_can_be_read(self) -> None:
        """`problems` is empty when it can be read.

        Without it, the preflight refuses presets that would have run.
        """
        assert not self.source.problems()

    def test_rows_are_examples_or_bad_rows(self) -> None:
        """Rows are examples, bad rows or removed ones, and good ones pass the door.

        Prompts alone, and scored completions, have some way to go before it.

        Without it, what cannot be trained on is found after an hour of tokenising.
        """
        for row in self.source.rows():
            assert isinstance(row, (Example, BadRow, Removed))
            if isinstance(row, Example) and row.completions and row.scores is None:
                check(row)

    def test_miniature_has_rows_of_the_same_kind(self, tmp_path: Path) -> None:
        """Its miniature has rows with as many completions, offline.

        Without it, `--smoke` cannot try the stage.
        """
        wanted = {len(row.completions) for row in self.source.rows() if isinstance(row, Example)}
        got = {len(row.completions) for row in self.source.miniature(tmp_path).rows() if isinstance(row, Example)}
        assert got == wanted

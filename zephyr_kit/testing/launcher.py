"""Laws of launchers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from zephyr_kit import ZkitError
from zephyr_kit.protocols import Job, Launcher
from zephyr_kit.testing.laws import DoesNotApply
from zephyr_kit.testing.offer import OfferLaws


class LauncherLaws(OfferLaws):
    """What `zkit run` and `zkit launch` rely on."""

    subject = "launcher"
    title = "Launchers"
    launcher: Launcher
    waits: ClassVar[bool] = True
    """Whether `launch` comes back when the job has ended, and not when it has been handed in."""
    devices: ClassVar[int] = 2

    def test_has_no_problems_with_a_job_that_it_can_start(self, tmp_path: Path) -> None:
        """`problems` is empty for a job that it can start.

        Without it, `zkit launch` refuses what would have run.
        """
        assert not self.launcher.problems(self._job(tmp_path)), self.launcher.problems(self._job(tmp_path))

    def test_starts_a_job(self, tmp_path: Path) -> None:
        """A job that ends well ends with 0.

        Without it, a script that waits for a run cannot go on after it.
        """
        assert self.launcher.launch(self._job(tmp_path), lambda _: None) == 0

    def test_tells_when_a_job_fails(self, tmp_path: Path) -> None:
        """A job whose processes fail does not end with 0, or ends in an error that says why.

        Without it, a run that failed looks like one that is done.
        """
        if not self.waits:
            raise DoesNotApply("it hands the job in, and does not wait for its end")
        with suppress(ZkitError):
            assert self.launcher.launch(replace(self._job(tmp_path), arguments=("no-such-command",)), lambda _: None) != 0

    def _job(self, folder: Path) -> Job:
        return Job("laws", ("--version",), folder, "cpu", self.devices)

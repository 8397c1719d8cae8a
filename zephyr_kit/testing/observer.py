"""Laws of observers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch

from zephyr_kit.observe import Report, Run
from zephyr_kit.plugins import Plugins
from zephyr_kit.testing.laws import Laws

STARTED, STEP, HELD_OUT, ENDED = "zkit_run_started", "zkit_step_ended", "zkit_held_out", "zkit_run_ended"


class ObserverLaws(Laws):
    """What the loop relies on when it tells plugins how a run goes: they read, and never steer."""

    subject = "observer"
    title = "Observers"
    observer: Any
    """A plugin: a module or an object with hooks."""
    num_steps: ClassVar[int] = 3

    def test_hears_a_run_to_its_end(self, tmp_path: Path) -> None:
        """It raises nothing, from the start of a run over its steps to its end.

        Without it, it is told of as broken in the middle of a training, and hears no more that can be trusted.
        """
        self._tell(tmp_path, error=None)

    def test_hears_a_run_that_fails(self, tmp_path: Path) -> None:
        """It raises nothing when a run ends with an error before its first step.

        Without it, the reason of a failure is hidden behind another.
        """
        plugins, run = self._plugins(), self._run(tmp_path)
        assert not plugins.tell(STARTED, run=run)
        assert not plugins.tell(ENDED, run=run, error=RuntimeError("on purpose"))

    def test_hears_a_run_that_goes_on(self, tmp_path: Path) -> None:
        """A run that is resumed tells of steps again; it takes them as they come.

        Without it, a run that was killed cannot be observed to its end.
        """
        self._tell(tmp_path, error=KeyboardInterrupt())
        self._tell(tmp_path, error=None, first=1)

    def test_never_steers(self, tmp_path: Path) -> None:
        """What it is told stays as it was, and so do torch's random numbers and modes.

        Without it, whether somebody looks changes what is trained.
        """
        metrics = {"reward/margin": 0.5}
        before = (copy.deepcopy(metrics), torch.random.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype())
        self._tell(tmp_path, error=None, metrics=metrics)
        assert metrics == before[0]
        assert torch.equal(torch.random.get_rng_state(), before[1])
        assert (torch.is_grad_enabled(), torch.get_default_dtype()) == before[2:]

    def _tell(self, folder: Path, *, error: BaseException | None, first: int = 0, metrics: dict[str, float] | None = None) -> None:
        plugins, run, metrics = self._plugins(), self._run(folder, first), metrics if metrics is not None else {"reward/margin": 0.5}
        complaints = plugins.tell(STARTED, run=run)
        for step in range(first + 1, self.num_steps + 1):
            complaints += plugins.tell(STEP, run=run, report=self._report(step, metrics))
        complaints += plugins.tell(HELD_OUT, run=run, step=self.num_steps, metrics=metrics)
        complaints += plugins.tell(ENDED, run=run, error=error)
        assert not complaints, complaints

    def _plugins(self) -> Plugins:
        return Plugins(self.observer, discover=False)

    def _run(self, folder: Path, first: int = 0) -> Run:
        (folder / "laws" / "sft").mkdir(parents=True, exist_ok=True)
        return Run("laws", "sft", folder / "laws" / "sft", self.num_steps, first, {"train.learning_rate": 1e-4})

    def _report(self, step: int, metrics: dict[str, float]) -> Report:
        return Report(step, self.num_steps, step / self.num_steps, 1 / step, metrics, 1.0, 1e-4, 512, 128, 1000.0)

"""The hooks that a plugin may implement.

A hook that offers answers with a mapping from the name written in a preset to a frozen
dataclass, whose fields are the other keys of that table. Import heavy modules inside the
hook, so that `zkit --help` stays quick. An implementation may ask for fewer arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_kit import hookspec

if TYPE_CHECKING:
    import click

    from zephyr_kit.observe import Report, Run
    from zephyr_kit.protocols import (
        Attention,
        Backend,
        Completer,
        DataSource,
        Filter,
        Judge,
        Launcher,
        Objective,
        OptimizerFactory,
        Suite,
        Tracker,
    )


@hookspec
def zkit_data_sources() -> Mapping[str, type[DataSource]]:
    """Offer places to read examples from."""


@hookspec
def zkit_filters() -> Mapping[str, type[Filter]]:
    """Offer steps that examples pass on their way into a corpus."""


@hookspec
def zkit_objectives() -> Mapping[str, type[Objective]]:
    """Offer things to minimise."""


@hookspec
def zkit_backends() -> Mapping[str, type[Backend]]:
    """Offer models that score a batch."""


@hookspec
def zkit_attentions() -> Mapping[str, type[Attention]]:
    """Offer attention kernels for packed, prompt-sharing rows."""


@hookspec
def zkit_optimizers() -> Mapping[str, type[OptimizerFactory]]:
    """Offer optimizers."""


@hookspec
def zkit_completers() -> Mapping[str, type[Completer]]:
    """Offer writers of replies."""


@hookspec
def zkit_judges() -> Mapping[str, type[Judge]]:
    """Offer judges of completions."""


@hookspec
def zkit_suites() -> Mapping[str, type[Suite]]:
    """Offer evaluations."""


@hookspec
def zkit_launchers() -> Mapping[str, type[Launcher]]:
    """Offer ways to start a run on several devices."""


@hookspec
def zkit_trackers() -> Mapping[str, type[Tracker]]:
    """Offer places that figures of training are shown in."""


@hookspec
def zkit_presets() -> Path:
    """Offer a folder of presets."""


@hookspec
def zkit_commands(cli: click.Group) -> None:
    """Add subcommands to `zkit`."""


@hookspec
def zkit_run_started(run: Run) -> None:
    """A stage has its model and its data, and takes its first step next. Read, never steer."""


@hookspec
def zkit_step_ended(run: Run, report: Report) -> None:
    """Steps were taken and their figures are known; called in order, once for each step."""


@hookspec
def zkit_held_out(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    """The held-out data was looked at after `step`; means of the loss and of the metrics."""


@hookspec
def zkit_run_ended(run: Run, error: BaseException | None) -> None:
    """A stage has ended, also when it failed."""

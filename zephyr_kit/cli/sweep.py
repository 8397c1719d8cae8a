"""`zkit sweep`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zephyr_kit import ZkitError
from zephyr_kit.cli import child
from zephyr_kit.cli.find import find_preset
from zephyr_kit.cli.passing import arguments_of_run, options_of_run
from zephyr_kit.cli.ranks import Devices, chosen_launcher, launch_job
from zephyr_kit.plugins import Plugins
from zephyr_kit.stopping import Stop

if TYPE_CHECKING:
    from zephyr_kit.preset import Preset
    from zephyr_kit.sweep.grid import Combination
    from zephyr_kit.sweep.spread import Outcome

LAUNCHED = ("devices", "nodes", "rendezvous")
"""Options of `zkit run` that a launcher decides."""
PATIENCE = 60.0
"""Seconds that a run has to save and end whose sweep was killed."""


@dataclass(frozen=True)
class Starter:
    """Has `zkit run` run a combination, here or through a launcher."""

    plugins: Plugins
    file: Path
    folder: Path
    """Of the sweep."""
    given: Mapping[str, Any]
    """The options of `zkit run`, for every combination."""
    launcher: str | None
    options: tuple[str, ...]

    def start(self, one: Combination, preset: Preset) -> child.Ended:
        """To its end, or until it is handed in."""
        changes = (*self.given["changes"], *one.changes)
        # Here the sweep itself keeps the time.
        max_time = self.given["max_time"] if self.launcher else None
        values = {**self.given, "changes": changes, "reuse": self.folder, "max_time": max_time}
        arguments = arguments_of_run(values, str(self.file), self.folder / one.name, but=LAUNCHED if self.launcher else ())
        if self.launcher:
            return self._launch(one, preset, arguments)
        if (run := self.folder / one.name).is_dir():
            self._wait(run)
        return child.zkit(arguments)

    def _wait(self, run: Path) -> None:
        """For the run of a sweep that was killed, which saves and ends."""
        from zephyr_kit.runs import RunError, RunFolder

        with suppress(RunError), RunFolder(run).locked(patience=PATIENCE):  # whoever is still there then is told of by `zkit run`
            pass

    def _launch(self, one: Combination, preset: Preset, arguments: tuple[str, ...]) -> child.Ended:
        wanted = Devices(*(self.given[name] for name in ("device", *LAUNCHED)))
        try:
            launcher = chosen_launcher(self.plugins, self.launcher or "", self.options)
            code = launch_job(launcher, preset, self.folder / one.name, wanted, arguments=arguments, queue=_queue(preset, one))
        except ZkitError as error:
            return child.Ended(error.exit, str(error))
        return child.Ended(code, f"exit code {code}" if code else "")


@click.command(params=[click.Argument(["preset"]), *options_of_run("preset", "output", "reuse")])
@click.option("--grid", "grid", multiple=True, required=True, metavar="KEY=VALUE,VALUE", help="Values of a key: seed=1,2,3. Repeatable.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="The sweep's folder.  [default: sweeps/NAME]")
@click.option("--launcher", metavar="NAME", help="Hand each combination to slurm, ray, or a plugin's launcher.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="A key of the launcher: partition=gpu. Repeatable.")
@click.option("--table", "only_table", is_flag=True, help="Start nothing: write the table of what is there.")
@click.pass_context
def sweep(
    context: click.Context,
    /,
    preset: str,
    grid: tuple[str, ...],
    output: Path | None,
    launcher: str | None,
    options: tuple[str, ...],
    only_table: bool,  # noqa: FBT001  click's way
    **given: Any,
) -> None:
    """Run PRESET with every combination of values.

    Each has a folder of its own; what they have in common is made once. The same command goes on where it stood,
    and tries again what failed. The other options are those of `zkit run`.
    """
    stop = Stop()
    with stop.listening(given["max_time"]):
        from zephyr_kit.preset import load
        from zephyr_kit.runs import RunFolder
        from zephyr_kit.sweep.grid import Axis, combinations

        plugins: Plugins = context.obj
        file, found = find_preset(preset, plugins), combinations([Axis.parse(text) for text in grid])
        presets = {one.name: load(file, plugins.offers, changes=(*given["changes"], *one.changes)) for one in found}
        title = next(iter(presets.values())).name
        folder = output or Path("sweeps") / title
        with RunFolder(folder).locked():
            _sweep(title, found, presets, Starter(plugins, file, folder, given, launcher, options), starts=not only_table)


def _sweep(title: str, found: Sequence[Combination], presets: Mapping[str, Preset], starter: Starter, *, starts: bool) -> None:
    """Start each combination, if they are to be started; whatever comes, write what is there."""
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.sweep.spread import Outcome
    from zephyr_kit.sweep.view import View
    from zephyr_kit.sweep.writing import write_sweep

    teller, folder = Teller(), starter.folder
    longest_first = sorted(presets.values(), key=lambda preset: -len(preset.stages))
    stages = list(dict.fromkeys(stage.name for preset in longest_first for stage in preset.stages))
    outcomes = {one.name: Outcome(one, folder / one.name, _state(folder / one.name, presets[one.name])) for one in found}
    try:
        for number, one in enumerate(found if starts else (), 1):
            teller.say(f"combination {number} of {len(found)}: {', '.join(one.changes)}")
            ended = starter.start(one, presets[one.name])
            state = "failed" if ended.code else _state(folder / one.name, presets[one.name])
            outcomes[one.name] = Outcome(one, folder / one.name, state, ended.reason)
            write_sweep(folder, View(title, list(outcomes.values()), stages))
    finally:
        page = write_sweep(folder, View(title, list(outcomes.values()), stages))
    teller.say("")
    teller.say(f"sweep    {page}")
    _refuse_failures([outcome for outcome in outcomes.values() if outcome.state == "failed"], len(found))


def _refuse_failures(failed: Sequence[Outcome], num_all: int) -> None:
    if failed:
        named = "".join(f"\n  {one.combination.name}: {one.reason.partition(chr(10))[0]}" for one in failed)
        raise ZkitError(f"{len(failed)} of {num_all} combinations failed; the same command tries them again:{named}")


def _state(run: Path, preset: Preset) -> str:
    from zephyr_kit.sweep.spread import stages_of

    states = {stage.name: stage.state for stage in stages_of(run)}
    return "finished" if all(states.get(stage.name) == "done" for stage in preset.stages) else "not finished"


def _queue(preset: Preset, one: Combination) -> str:
    """The name that combinations share which may have their first stage in common: one after another, they make it once."""
    first = f"stages.{preset.stages[0].name}"
    return "-".join([preset.name, *_parts(one, first)])


def _parts(one: Combination, first: str) -> Iterator[str]:
    from zephyr_kit.sweep.grid import combination_name

    trunk = {key: value for key, value in one.choices.items() if not key.startswith("stages.") or f"{key}.".startswith(f"{first}.")}
    if trunk:
        yield combination_name(trunk)

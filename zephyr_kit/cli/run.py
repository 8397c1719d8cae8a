"""`zkit run`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_kit.cli.completion import complete_preset
from zephyr_kit.cli.duration import seconds
from zephyr_kit.cli.find import find_preset, pool
from zephyr_kit.cli.ranks import Devices, found_world, launch_job, make_folder, own_device
from zephyr_kit.config import PresetError
from zephyr_kit.exits import table
from zephyr_kit.heartbeat import own_signs
from zephyr_kit.launched import is_a_rank
from zephyr_kit.plugins import Plugins
from zephyr_kit.redaction import names_of_secrets_in
from zephyr_kit.stopping import Stop

if TYPE_CHECKING:
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.preset import Preset
    from zephyr_kit.protocols import Evaluation
    from zephyr_kit.runs import RunFolder
    from zephyr_kit.world import World

LAUNCHER = "elastic"
"""What starts the ranks of a run on this machine."""
ENDS = "\b\nHow it ends:\n" + "\n".join(table())


@click.command(epilog=ENDS)
@click.argument("preset", shell_complete=complete_preset)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value: stages.dpo.objective.beta=0.05. Repeatable.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="The run's folder.  [default: runs/NAME]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--devices", type=click.IntRange(min=1), help="How many of this machine's devices.  [default: all GPUs, or one CPU]")
@click.option("--nodes", default="1", metavar="N", help="On so many machines, each with this command; 2:4 goes on with two of four.")
@click.option("--rendezvous", metavar="HOST:PORT", help="Where several machines meet.")
@click.option("--accept", "accepted", multiple=True, metavar="NAME", help="Accept that an input has changed. Repeatable.")
@click.option("--reuse", type=click.Path(path_type=Path), callback=pool, help="A folder of runs: what one has finished is taken over.")
@click.option("--max-time", callback=seconds, metavar="TIME", help="Save and leave after so long: 2h30m, 45m, 90s.")
@click.option("--smoke", is_flag=True, help="The same pipeline in miniature: shrunken random model, generated rows, a few steps, offline.")
@click.pass_obj
def run(
    plugins: Plugins,
    preset: str,
    changes: tuple[str, ...],
    output: Path | None,
    device: str,
    devices: int | None,
    nodes: str,
    rendezvous: str | None,
    accepted: tuple[str, ...],
    reuse: Path | None,
    max_time: float | None,
    smoke: bool,  # noqa: FBT001  click's way
) -> int:
    """Run PRESET, a file or a name, or go on where it stood."""
    stop = Stop(silent=own_signs() is not None)
    with stop.starting(max_time):
        from zephyr_kit.disk import disk_errors_told
        from zephyr_kit.preset import load

        resolved = load(find_preset(preset, plugins), plugins.offers, changes=changes)
        _refuse_secrets(resolved)
        folder = output or Path("runs") / (f"{resolved.name}-smoke" if smoke else resolved.name)
        wanted = Devices(device, devices, nodes, rendezvous)
        # Only now, for it imports torch, and a misspelt preset is to be told at once.
        from zephyr_kit.runs import RunFolder

        with disk_errors_told(folder):
            if is_a_rank():
                if own_signs() is None:
                    wanted.refuse_more()
            elif wanted.are_several():
                return _launch(plugins, resolved, folder, wanted)
            with found_world(device) as world:
                _run(plugins, resolved, RunFolder(folder, reuse), device, world, stop, accepted, smoke=smoke)
    return 0


def _launch(plugins: Plugins, preset: Preset, folder: Path, wanted: Devices) -> int:
    """Have this very command started on each device."""
    from zephyr_kit.protocols import Launcher

    elastic = plugins.offered(Launcher)[LAUNCHER]()
    return launch_job(elastic, preset, folder, wanted, arguments=tuple(sys.argv[1:]))


def _run(
    plugins: Plugins,
    preset: Preset,
    place: RunFolder,
    device: str,
    world: World,
    stop: Stop,
    accepted: tuple[str, ...],
    *,
    smoke: bool,
) -> None:
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.pipeline import Pipeline
    from zephyr_kit.smoke import miniature

    folder = place.path
    teller = Teller()
    plugins.add(teller, "zkit-teller")
    if smoke:
        make_folder(folder)
        with world.leader_first():
            preset = miniature(preset, folder / "smoke")
        world.gather(None)  # nobody reads what another still writes
    pipeline = Pipeline(preset, place, plugins, teller, own_device(device, world), world, stop, accepted)
    if not world.leads:
        stop.begin()
        pipeline.follow()
        return
    if not smoke:
        pipeline.check()
        make_folder(folder)
    _follow_with(plugins, preset, teller)
    teller.say(f"{preset.name} in {folder} on {pipeline.device}{f', {world.size} of them' if world.size > 1 else ''}")
    if others := plugins.third_parties():
        teller.say(f"with plugins of others, which may do whatever zkit may: {', '.join(map(str, others))} (--no-third-party goes without)")
    stop.begin()
    evaluations = pipeline.run()
    _conclude(teller, preset, folder, evaluations)


def _follow_with(plugins: Plugins, preset: Preset, teller: Teller) -> None:
    """Have the preset's trackers observe the run; say what is to leave this machine."""
    from zephyr_kit.protocols import Tracker
    from zephyr_kit.tracking import Tracking

    names = {cls: name for name, cls in plugins.offered(Tracker).items()}
    for number, tracker in enumerate(preset.track):
        name = names[type(tracker)]
        plugins.add(Tracking(tracker), f"track[{number}] ({name})")
        destination = tracker.destination()
        if destination is not None:
            teller.say(f"{name}: the figures of every step, and the settings of every stage that trains, go to {destination}")


def _refuse_secrets(preset: Preset) -> None:
    """A preset is written into the run's folder, and into the card of every model."""
    for name in names_of_secrets_in(json.dumps(preset.table, ensure_ascii=False, default=str)):
        raise PresetError(
            f"{preset.file}: holds the value of the environment variable {name}, which would be written into the run; "
            f'name the variable instead, as in api_key_env = "{name}"'
        )


def _conclude(teller: Teller, preset: Preset, folder: Path, evaluations: list[Evaluation]) -> None:
    from zephyr_kit.report import write_reports

    for evaluation in evaluations:
        teller.show(evaluation)
    reports = write_reports(folder)
    last = [stage.name for stage in preset.stages if (folder / stage.name / "model").is_dir()]
    teller.say("")
    for name in last:
        teller.say(f"model    {folder / name / 'model'}")
    teller.say(f"metrics  {folder}/*/metrics.jsonl")
    for report in reports:
        teller.say(f"report   {report}")
    if last:
        teller.say(f"to talk to it:  zkit chat {folder}")

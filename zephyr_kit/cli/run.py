"""`zkit run`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_kit import ZkitError
from zephyr_kit.cli.duration import seconds
from zephyr_kit.cli.find import find_preset
from zephyr_kit.exits import table
from zephyr_kit.plugins import Plugins
from zephyr_kit.stopping import Stop

if TYPE_CHECKING:
    import torch

    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.preset import Preset
    from zephyr_kit.protocols import Evaluation, Launcher
    from zephyr_kit.world import World

LAUNCHER = "elastic"
"""What starts the ranks of a run on this machine."""


@dataclass(frozen=True)
class Devices:
    """On how many devices, of how many machines."""

    device: str
    devices: int | None = None
    nodes: str = "1"
    rendezvous: str | None = None

    def __post_init__(self) -> None:
        fewest, most = self.range_of_nodes
        if not 1 <= fewest <= most:
            raise ZkitError(f"--nodes {self.nodes}: takes a number of machines, as 4, or the fewest and the most, as 2:4")
        if (most > 1) != (self.rendezvous is not None):
            raise ZkitError("--nodes and --rendezvous HOST:PORT go together: HOST is one of the machines, the same for all")

    @property
    def range_of_nodes(self) -> tuple[int, int]:
        """The fewest and the most machines."""
        fewest, _, most = self.nodes.partition(":")
        try:
            return int(fewest), int(most or fewest)
        except ValueError:
            return 0, 0

    def of_this_machine(self) -> tuple[str, int]:
        """`cpu` or `cuda`, and how many of them."""
        import torch

        from zephyr_kit.devices import find_device

        found = find_device(self.device)
        if self.devices is not None:
            return found.type, self.devices
        return found.type, torch.cuda.device_count() if found.type == "cuda" and found.index is None else 1


ENDS = "\b\nHow it ends:\n" + "\n".join(table())


@click.command(epilog=ENDS)
@click.argument("preset")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value: stages.dpo.objective.beta=0.05. Repeatable.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="The run's folder.  [default: runs/NAME]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--accept", "accepted", multiple=True, metavar="NAME", help="Accept that an input has changed. Repeatable.")
@click.option("--max-time", callback=seconds, metavar="TIME", help="Save and leave after so long: 2h30m, 45m, 90s.")
@click.option("--devices", type=click.IntRange(min=1), help="How many of this machine's devices.  [default: all GPUs, or one CPU]")
@click.option("--nodes", default="1", metavar="N", help="On so many machines, each with this command; 2:4 goes on with two of four.")
@click.option("--rendezvous", metavar="HOST:PORT", help="Where several machines meet.")
@click.option("--smoke", is_flag=True, help="The same pipeline in miniature: shrunken random model, generated rows, a few steps, offline.")
@click.pass_obj
def run(
    plugins: Plugins,
    preset: str,
    changes: tuple[str, ...],
    output: Path | None,
    device: str,
    accepted: tuple[str, ...],
    max_time: float | None,
    devices: int | None,
    nodes: str,
    rendezvous: str | None,
    smoke: bool,  # noqa: FBT001  click's way
) -> int:
    """Run PRESET, a file or a name: start it, or go on where it stood."""
    stop = Stop()
    with stop.listening(max_time):
        from zephyr_kit.preset import load

        resolved = load(find_preset(preset, plugins), plugins.offers, changes=changes)
        folder = output or Path("runs") / (f"{resolved.name}-smoke" if smoke else resolved.name)
        wanted = Devices(device, devices, nodes, rendezvous)
        from zephyr_kit.disk import disk_errors_told
        from zephyr_kit.world import is_a_rank

        if is_a_rank() or (wanted.rendezvous is None and wanted.of_this_machine()[1] == 1):
            with disk_errors_told(folder), _world(plugins, device) as world:
                _run(plugins, resolved, folder, device, world, stop, accepted, smoke=smoke)
            return 0
    # The launcher hears signals itself, and passes them on.
    from zephyr_kit.protocols import Launcher

    return launch_job(plugins.offered(Launcher)[LAUNCHER](), resolved.name, folder, wanted, arguments=tuple(sys.argv[1:]))


def launch_job(launcher: Launcher, name: str, folder: Path, wanted: Devices, *, arguments: tuple[str, ...]) -> int:
    """Have `zkit`, with these arguments, started on several devices."""
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.protocols import Job

    device, count = wanted.of_this_machine()
    fewest, most = wanted.range_of_nodes
    job = Job(name, arguments, folder, device, count, most, fewest, wanted.rendezvous)
    problems = launcher.problems(job)
    if problems:
        raise ZkitError("\n".join(problems))
    _make(folder)
    return launcher.launch(job, Teller().say)


@contextmanager
def _world(plugins: Plugins, device: str) -> Iterator[World]:
    """What a launcher has started, with signs of life where it wants them; else this process alone."""
    from zephyr_kit.devices import find_device
    from zephyr_kit.heartbeat import Heart, own_signs
    from zephyr_kit.world import World, is_a_rank, joined

    if not is_a_rank():
        yield World()
        return
    signs = own_signs()
    heart = None if signs is None else Heart(signs)
    if heart is not None:
        plugins.add(heart, "zkit-heart")
    with heart.beating() if heart is not None else nullcontext(), joined(find_device(device).type) as world:
        yield world


def _run(
    plugins: Plugins, preset: Preset, folder: Path, device: str, world: World, stop: Stop, accepted: tuple[str, ...], *, smoke: bool
) -> None:
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.pipeline import Pipeline
    from zephyr_kit.runs import RunFolder
    from zephyr_kit.smoke import miniature

    teller = Teller()
    plugins.add(teller, "zkit-teller")
    if smoke:
        _make(folder)
        # Each process has its own, or one would write what another reads.
        preset = miniature(preset, folder / "smoke" if world.leads else folder / "smoke" / f"rank-{world.rank}")
    pipeline = Pipeline(preset, RunFolder(folder), plugins, teller, _device(device, world), stop, accepted, world)
    if not world.leads:
        pipeline.follow()
        return
    if not smoke:
        pipeline.check()
        _make(folder)
    teller.say(f"{preset.name} in {folder} on {pipeline.device}{f', {world.size} of them' if world.size > 1 else ''}")
    evaluations = pipeline.run()
    _conclude(teller, preset, folder, evaluations)


def _device(name: str, world: World) -> torch.device:
    import torch

    from zephyr_kit.devices import find_device

    found = find_device(name)
    return torch.device("cuda", world.local_rank) if found.type == "cuda" and world.size > 1 else found


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZkitError(f"cannot make the folder of the run, {folder}: {error.strerror}; choose another with --output") from error


def _conclude(teller: Teller, preset: Preset, folder: Path, evaluations: list[Evaluation]) -> None:
    from zephyr_kit.report import write_report

    for evaluation in evaluations:
        teller.show(evaluation)
    report = write_report(preset, folder, evaluations)
    last = [stage.name for stage in preset.stages if (folder / stage.name / "model").is_dir()]
    teller.say("")
    for name in last:
        teller.say(f"model    {folder / name / 'model'}")
    teller.say(f"metrics  {folder}/*/metrics.jsonl")
    teller.say(f"report   {report}")
    if last:
        teller.say(f"to talk to it:  zkit chat {folder}")

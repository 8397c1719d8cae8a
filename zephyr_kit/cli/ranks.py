"""The processes of a run on several devices, as the command line asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_kit import ZkitError
from zephyr_kit.launched import is_a_rank

if TYPE_CHECKING:
    import torch

    from zephyr_kit.plugins import Plugins
    from zephyr_kit.preset import Preset
    from zephyr_kit.protocols import Launcher
    from zephyr_kit.world import World


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

    def are_several(self) -> bool:
        """Whether there are processes to be started."""
        several = self.range_of_nodes[1] > 1
        if several != (self.rendezvous is not None):
            raise ZkitError("--nodes and --rendezvous HOST:PORT go together: HOST is one of the machines, the same for all")
        return several or self.of_this_machine()[1] > 1

    def refuse_more(self) -> None:
        """Another launcher has started all processes that there will be."""
        if self.devices is not None or self.nodes != "1" or self.rendezvous is not None:
            raise ZkitError("--devices, --nodes, --rendezvous: the processes are started already; tell that launcher, and leave these out")


def chosen_launcher(plugins: Plugins, name: str, options: tuple[str, ...]) -> Launcher:
    """A launcher, with keys of its own set."""
    from zephyr_kit.changes import apply_changes
    from zephyr_kit.config import USE, Builder
    from zephyr_kit.protocols import Launcher

    table, origins = apply_changes({USE: name}, options, f"launcher {name}", option="--option")
    launcher: Launcher = Builder(plugins.offers, "--option", origins).convert(Launcher, table, "launcher")
    return launcher


def launch_job(
    launcher: Launcher, preset: Preset, folder: Path, wanted: Devices, *, arguments: tuple[str, ...], queue: str | None = None
) -> int:
    """Have `zkit`, with these arguments, started on several devices; jobs of one `queue` one after another."""
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.protocols import Job

    device, count = wanted.of_this_machine()
    fewest, most = wanted.range_of_nodes
    for nodes in range(fewest, most + 1):
        _refuse_odd_teams(preset, count * nodes)
    job = Job(queue or preset.name, arguments, folder, device, count, most, fewest, wanted.rendezvous, in_turn=queue is not None)
    problems = launcher.problems(job)
    if problems:
        raise ZkitError("\n".join(problems))
    make_folder(folder)
    return launcher.launch(job, Teller().say)


def _refuse_odd_teams(preset: Preset, num_devices: int) -> None:
    """Now, and not when all machines have come together."""
    from zephyr_kit.stages import TrainStage
    from zephyr_kit.world import World

    for stage in preset.stages:
        if isinstance(stage.task, TrainStage):
            try:
                World(size=num_devices).in_teams(stage.task.train.context_parallel)
            except ZkitError as error:
                raise ZkitError(f"[stages.{stage.name}] {error}") from error


@contextmanager
def found_world(device: str) -> Iterator[World]:
    """What a launcher has started, with signs of life where it wants them; else this process alone."""
    from zephyr_kit.devices import find_device
    from zephyr_kit.heartbeat import Heart, own_signs
    from zephyr_kit.world import World, joined

    if not is_a_rank():
        yield World()
        return
    signs = own_signs()
    heart = None if signs is None else Heart(signs)
    with heart.beating() if heart is not None else nullcontext(), joined(find_device(device).type, heart) as world:
        yield world


def own_device(name: str, world: World) -> torch.device:
    """The one that this process works on; from now on also torch's current one."""
    import torch

    from zephyr_kit.devices import find_device, made_current

    found = find_device(name)
    return made_current(torch.device("cuda", world.local_rank) if found.type == "cuda" and world.size > 1 else found)


def make_folder(folder: Path) -> None:
    """Make the folder of a run."""
    from zephyr_kit.disk import DiskError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make the folder of the run, {folder}: {error.strerror}; choose another with --output") from error

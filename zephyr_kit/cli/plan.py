"""`zkit plan`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from zephyr_kit import ZkitError
from zephyr_kit.cli.completion import complete_preset
from zephyr_kit.cli.find import find_preset
from zephyr_kit.plugins import Plugins


@click.command()
@click.argument("preset", shell_complete=complete_preset)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …, or one that is not here: h200, rtx4090 …")
@click.option("--devices", "count", default=1, show_default=True, type=click.IntRange(1), help="So many of them, on one machine.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value, as in `zkit run`.")
@click.option("--output", type=click.Path(path_type=Path), help="The run's folder, for data that was gathered there.  [default: runs/NAME]")
@click.option("--data/--no-data", default=True, show_default=True, help="Read the data as the run would, or plan for a largest batch.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def plan(
    plugins: Plugins,
    preset: str,
    device: str,
    count: int,
    changes: tuple[str, ...],
    output: Path | None,
    data: bool,  # noqa: FBT001  click's way
    as_json: bool,  # noqa: FBT001
) -> None:
    """Tell what PRESET takes: memory, steps, time.

    Before anything is loaded, by part and for each stage, and whether it fits the device.
    """
    from rich.console import Console

    from zephyr_kit.cache import cache_in_use
    from zephyr_kit.cli.plan_terminal import show
    from zephyr_kit.cli.planned import look_ahead
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.devices import named_device
    from zephyr_kit.preset import load
    from zephyr_kit.world import World

    resolved = load(find_preset(preset, plugins), plugins.offers, changes=changes)
    place = named_device(device).for_each_of(count)
    teller = Teller(Console(highlight=False, soft_wrap=True, stderr=as_json))
    with cache_in_use():
        world = World(size=count, local_size=count)
        planned = list(look_ahead(resolved, place, world, teller, output or Path("runs") / resolved.name, with_data=data))
    if not planned:
        raise ZkitError(f"{resolved.file}: no stage of it trains, so there is nothing to plan")
    if as_json:
        facts = {"preset": resolved.name, "device": place.facts(count), "stages": [each.facts() for each in planned]}
        click.echo(json.dumps(facts, indent=1))
    else:
        show(resolved, place, count, planned, teller.console)
    if not all(each.fits for each in planned):
        click.get_current_context().exit(1)

"""`zkit launch`: a run on a cluster."""

from __future__ import annotations

from pathlib import Path

import click

from zephyr_kit.cli.find import find_preset
from zephyr_kit.cli.passing import arguments_of_run, options_of_run
from zephyr_kit.cli.ranks import Devices, chosen_launcher, launch_job
from zephyr_kit.plugins import Plugins

OWN = ("devices", "nodes", "rendezvous")
"""What the launcher decides."""


@click.command(params=[click.Argument(["launcher"]), *options_of_run()])
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="A key of the launcher: partition=gpu. Repeatable.")
@click.pass_context
def launch(context: click.Context, /, launcher: str, preset: str, output: Path | None, options: tuple[str, ...], **others: object) -> int:
    """Have LAUNCHER (slurm, ray, a plugin's) run PRESET.

    The other options are those of `zkit run`.
    """
    from zephyr_kit.preset import load

    plugins: Plugins = context.obj
    chosen = chosen_launcher(plugins, launcher, options)
    found = load(find_preset(preset, plugins), plugins.offers, changes=others["changes"])  # type: ignore[arg-type]
    folder = output or Path("runs") / (f"{found.name}-smoke" if others["smoke"] else found.name)
    wanted = Devices(*(others[name] for name in ("device", "devices", "nodes", "rendezvous")))  # type: ignore[arg-type]
    return launch_job(chosen, found, folder, wanted, arguments=arguments_of_run(context.params, preset, folder, but=OWN))

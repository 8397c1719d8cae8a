"""`zkit launch`: a run on a cluster."""

from __future__ import annotations

from pathlib import Path

import click

from zephyr_kit.cli.find import find_preset
from zephyr_kit.cli.ranks import Devices, launch_job
from zephyr_kit.cli.run import run
from zephyr_kit.plugins import Plugins

OWN = ("devices", "nodes", "rendezvous", "output")


def _of_run(*but: str) -> list[click.Parameter]:
    return [parameter for parameter in run.params if parameter.name not in but]


@click.command(params=[click.Argument(["launcher"]), *_of_run()])
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="A key of the launcher: partition=gpu. Repeatable.")
@click.pass_context
def launch(context: click.Context, /, launcher: str, preset: str, output: Path | None, options: tuple[str, ...], **others: object) -> int:
    """Have LAUNCHER (slurm, ray, a plugin's) run PRESET.

    The other options are those of `zkit run`.
    """
    from zephyr_kit.changes import apply_changes
    from zephyr_kit.config import USE, Builder
    from zephyr_kit.preset import load
    from zephyr_kit.protocols import Launcher

    plugins: Plugins = context.obj
    table, origins = apply_changes({USE: launcher}, options, "--option")
    chosen = Builder(plugins.offers, "--option", origins).convert(Launcher, table, "launcher")
    found = load(find_preset(preset, plugins), plugins.offers, changes=others["changes"])  # type: ignore[arg-type]
    folder = output or Path("runs") / (f"{found.name}-smoke" if others["smoke"] else found.name)
    wanted = Devices(*(others[name] for name in ("device", "devices", "nodes", "rendezvous")))  # type: ignore[arg-type]
    return launch_job(chosen, found.name, folder, wanted, arguments=_arguments(context, preset, folder))


def _arguments(context: click.Context, preset: str, folder: Path) -> tuple[str, ...]:
    """`zkit run` with what was given, but for what the launcher decides."""
    words = ["run", preset, "--output", str(folder)]
    for parameter in _of_run(*OWN, "preset"):
        value = context.params[parameter.name or ""]
        option = parameter.opts[0]
        if isinstance(parameter, click.Option) and parameter.is_flag:
            words += [option] if value else []
        elif parameter.multiple:
            words += [word for each in value for word in (option, each)]
        elif value is not None:
            words += [option, f"{value:.0f}s" if isinstance(value, float) else str(value)]  # the only float is a time
    return tuple(words)

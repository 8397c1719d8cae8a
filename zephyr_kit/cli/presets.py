"""`zkit presets` and `zkit schema`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from zephyr_kit.cli.completion import complete_preset
from zephyr_kit.cli.find import find_preset, known_presets
from zephyr_kit.config import PresetError
from zephyr_kit.plugins import Plugins


@click.group(invoke_without_command=True)
@click.pass_context
def presets(context: click.Context) -> None:
    """List presets, or show one resolved."""
    if context.invoked_subcommand is not None:
        return
    files = list(known_presets(context.obj))
    width = max((len(file.stem) for file in files), default=0)
    for file in files:
        click.echo(f"{file.stem:{width}}  {_description(file)}".rstrip())
    if remark := context.obj.remark("zkit_presets"):
        click.echo(remark.lstrip("\n"), err=True)


@presets.command()
@click.argument("preset", shell_complete=complete_preset)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value, as in `zkit run`.")
@click.pass_obj
def show(plugins: Plugins, preset: str, changes: tuple[str, ...]) -> None:
    """Print every resolved value of PRESET, and where it came from."""
    from zephyr_kit.preset import load

    resolved = load(find_preset(preset, plugins), plugins.offers, changes=changes)
    width = max(len(setting.path) for setting in resolved.settings)
    for setting in resolved.settings:
        click.echo(f"{setting.path:{width}} = {json.dumps(setting.value, ensure_ascii=False)}  # {setting.origin}")


@click.command()
@click.pass_obj
def schema(plugins: Plugins) -> None:
    """Print the JSON Schema of a preset. It holds all that the installed plugins offer."""
    from zephyr_kit.schema import preset_schema

    click.echo(json.dumps(preset_schema(plugins.offers), indent=2, ensure_ascii=False))


def _description(file: Path) -> str:
    from zephyr_kit.preset import read_toml

    try:
        return str(read_toml(file).get("description", ""))
    except PresetError as error:
        return f"(broken: {error})"

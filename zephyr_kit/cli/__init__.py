"""The command `zkit`. Nothing here imports torch: commands import what they need when they run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from zephyr_kit import ZkitError, __version__
from zephyr_kit.cli.chat import chat
from zephyr_kit.cli.plugins import plugins
from zephyr_kit.cli.presets import presets, schema
from zephyr_kit.cli.run import run
from zephyr_kit.plugins import Plugins

INTERRUPTED = 130


def build() -> click.Group:
    """The command group, with our subcommands and those of plugins."""
    found = Plugins()
    group = click.Group(
        "zkit",
        help="Align language models by the Zephyr recipe. Start with `zkit run presets/quickstart.toml`.",
        commands=[run, chat, presets, plugins, schema],
        context_settings={"help_option_names": ["-h", "--help"], "obj": found},
    )
    click.version_option(__version__, "-V", "--version", prog_name="zkit")(group)
    found.add_commands(group)
    return group


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `zkit`; what the user can mend is told in a few lines, without a traceback."""
    try:
        build().main(arguments, standalone_mode=True)
    except ZkitError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from the last checkpoint", err=True)
        sys.exit(INTERRUPTED)

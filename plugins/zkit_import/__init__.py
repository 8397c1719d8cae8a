"""`zkit import-config`: configurations of trl, axolotl, LLaMA-Factory and the alignment-handbook as presets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def zkit_commands(cli: click.Group) -> None:
    """Add `import-config`."""
    from zkit_import.command import import_config

    cli.add_command(import_config)

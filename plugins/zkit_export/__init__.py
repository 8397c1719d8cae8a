"""`zkit export`: a trained model as others take it, compared with what was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def zkit_commands(cli: click.Group) -> None:
    """Add `export`."""
    from zkit_export.command import export

    cli.add_command(export)

"""`zkit board`."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

PORT = 8420


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=Path("runs"))
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 for any that is free.")
@click.option("--open", "opened", is_flag=True, help="Open it in a browser.")
def board(folder: Path, port: int, opened: bool) -> None:  # noqa: FBT001  click's way
    """Show all runs below a folder in a browser, live.

    They can be filtered, compared, and followed while they train. It is served to this machine alone. FOLDER is `runs` unless given.
    """
    from zephyr_kit.board.server import Board
    from zephyr_kit.board.watch import Watch

    with Board(Watch(folder), port) as server:
        click.echo(f"{folder} at {server.address}  (Ctrl-C ends it)")
        if opened:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("")

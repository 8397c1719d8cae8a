"""`zkit board`."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from zephyr_kit import ZkitError

PORT = 8420


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=Path("runs"))
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 for any that is free.")
@click.option("--open", "opened", is_flag=True, help="Open it in a browser.")
def board(folder: Path, port: int, opened: bool) -> None:  # noqa: FBT001  click's way
    """Show all runs below a folder in a browser, live.

    They can be filtered, compared, and followed while they train. It is served to this machine alone. FOLDER is `runs` unless given.
    """
    from zephyr_kit.board.server import LOOPBACK, Board
    from zephyr_kit.board.watch import Watch

    try:
        server = Board(Watch(folder), port)
    except OSError as error:
        raise ZkitError(f"cannot serve at {LOOPBACK}:{port}: {error.strerror}; choose another with --port") from error
    with server:
        click.echo(f"{folder} at {server.address}  (Ctrl-C ends it)")
        if opened:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("")

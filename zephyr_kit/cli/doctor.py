"""`zkit doctor`."""

from __future__ import annotations

import click

from zephyr_kit.plugins import Plugins

MARKS = {"good": "ok", "remark": "note", "refused": "NO"}


@click.command()
@click.pass_obj
def doctor(plugins: Plugins) -> None:
    """Look at versions, devices, memory, disks and plugins.

    The exit code is 1 when something is refused: a version that is known to be unsafe, a package that is missing.
    """
    from zephyr_kit.doctor import examine

    found = list(examine(plugins))
    widths = [max(len(one.what) for one in found), max(len(one.found) for one in found)]
    for one in found:
        line = f"{MARKS[one.verdict]:4}  {one.what:{widths[0]}}  {one.found:{widths[1]}}  {one.remark}"
        click.echo(line.rstrip())
    refused = sum(one.verdict == "refused" for one in found)
    click.echo(f"\n{refused} refused" if refused else "\nnothing is in the way")
    if refused:
        click.get_current_context().exit(1)

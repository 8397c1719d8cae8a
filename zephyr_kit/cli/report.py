"""`zkit report`."""

from __future__ import annotations

from pathlib import Path

import click

from zephyr_kit import ZkitError
from zephyr_kit.cli.harmless import harmless

STDOUT = Path("-")


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--format", "ending", type=click.Choice(("html", "md")), default="html", show_default=True, help="A page, or Markdown.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Where to write it; - for the terminal.  [default: in the run's folder; of several runs, here]",
)
@click.option("--force", is_flag=True, help="Write it over whatever stands there.")
@click.option("--open", "opens", is_flag=True, help="Show it in the browser.")
def report(runs: tuple[Path, ...], ending: str, out: Path | None, force: bool, opens: bool) -> None:  # noqa: FBT001  click's way
    """Write what runs did, on one page that needs no network.

    The pipeline, curves, data, evaluations, answers side by side, costs, and what went wrong. RUN is a folder that `zkit run` wrote,
    finished or not. Several are laid over each other, with where their presets differ.
    """
    from zephyr_kit.facts import read_run, told_apart
    from zephyr_kit.records import write_text
    from zephyr_kit.report import FORMATS, is_report

    found = told_apart([read_run(run) for run in runs])
    path = out or (runs[0] if len(runs) == 1 else Path()) / f"report.{ending}"
    told = FORMATS[ending](found)
    if path == STDOUT:
        click.echo(harmless(told))
        return
    try:
        replaces = path.exists()
        if replaces and not force and not is_report(path):
            raise ZkitError(f"{path}: is there already, and is no report of ours; choose another file with --out, or add --force")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, told)
    except OSError as error:
        raise ZkitError(f"cannot write {path}: {error.strerror}; choose another file with --out") from error
    click.echo(f"report   {path}{', in place of an earlier one' if replaces else ''}")
    if opens:
        click.launch(str(path))

"""`zkit plugin`: write one, and try its laws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from zephyr_kit import ZkitError
from zephyr_kit.plugins import OFFERS, Plugins
from zephyr_kit.projects import KINDS, NOUNS

if TYPE_CHECKING:
    from zephyr_kit.testing.check import Finding, Subject

COUNTED = {"holds": "hold", "broken": "broken", "broken openly": "broken in the open", "not tried": "not tried"}
MARKS = {"holds": "ok", "broken": "BROKEN", "broken openly": "breaks", "does not apply": "–", "not tried": "?"}


@click.group()
def plugin() -> None:
    """Write a plugin, and try its laws."""


@plugin.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), required=True, help="What it offers.")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), default=".", help="Where its folder goes.  [default: here]")
@click.pass_obj
def new(plugins: Plugins, name: str, kind: str, into: Path) -> None:
    """Write a project that offers NAME: a module, its laws, its packaging.

    It works as written: install it, and go on from there.
    """
    from zephyr_kit.projects import write_project

    offered = (plugins.offered(cls) for cls, (noun, _) in OFFERS.items() if noun == NOUNS.get(kind, kind))
    folder = write_project(name, kind, into, taken={*plugins.origins, *(offer for offers in offered for offer in offers)})
    click.echo(f"{folder}: {KINDS[kind]}, ready to be installed")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        click.echo(f"  {file.relative_to(folder)}")
    click.echo(f"next:  pip install -e '{folder}[test]'  &&  python -m pytest {folder}  &&  zkit plugin check {folder}")


@plugin.command()
@click.argument("target", metavar="PATH|NAME")
@click.option("--set", "changes", multiple=True, metavar="OFFER.KEY=VALUE", help="A key that an offer needs. Repeatable.")
@click.pass_obj
def check(plugins: Plugins, target: str, changes: tuple[str, ...]) -> int:
    """Try the laws of a plugin, and say which hold.

    Of an installed one, by NAME, everything that it offers; of a project's folder, the laws that its
    tests inherit. The exit code is 1 when one is broken, or nothing could be tried.
    """
    from zephyr_kit.testing.check import subjects_in, subjects_of

    folder = Path(target)
    if changes and folder.is_dir():
        raise ZkitError(f"--set is for installed plugins; in {folder} the tests say what is tried")
    subjects = list(subjects_in(folder) if folder.is_dir() else subjects_of(plugins, _plugin_named(target, plugins), changes))
    if not subjects:
        raise ZkitError(f"plugin {target}: offers nothing that has laws")
    with _nothing_left_behind():
        counts = Counter(outcome for subject in subjects for outcome in _shown(subject))
    told = ", ".join(f"{counts[outcome]} {words}" for outcome, words in COUNTED.items() if counts[outcome])
    click.echo(f"\n{told or 'nothing was tried'}")
    return 1 if counts["broken"] or not told else 0


def _plugin_named(target: str, plugins: Plugins) -> str:
    """A plugin by its name, or by that of its project or module."""
    name = target.replace("-", "_")
    return next((each for each in (target, name, name.removeprefix("zkit_")) if each in plugins.origins), target)


def _shown(subject: Subject) -> Iterator[str]:
    """Print what came of each law, and give it."""
    click.echo(subject.name)
    if subject.kit is None:
        click.echo(f"  not tried: {subject.obstacle}")
        return
    for finding in subject.findings():
        for line in _lines(finding):
            click.echo(line)
        yield finding.outcome


@contextmanager
def _nothing_left_behind() -> Iterator[None]:
    """Keep what hypothesis notes down out of the current folder."""
    from hypothesis.configuration import set_hypothesis_home_dir

    with TemporaryDirectory() as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)


def _lines(finding: Finding) -> list[str]:
    figures = ", ".join(f"{what} {value:.1e}" if value else f"{what} 0" for what, value in finding.figures.items())
    line = f"  {MARKS[finding.outcome]:7} {finding.law.words}"
    remark, *more = finding.remark.splitlines() or [""]
    told = [f"{line}{f'  ({figures})' if figures else ''}{f': {remark}' if remark else ''}", *(f"          {each}" for each in more)]
    return [*told, f"          without it, {finding.law.without}"] if finding.outcome == "broken" and finding.law.without else told

"""`zkit preview`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from zephyr_kit import ZkitError
from zephyr_kit.cache import cache_folder, cache_in_use
from zephyr_kit.cli.completion import complete_preset
from zephyr_kit.cli.find import find_preset
from zephyr_kit.config import suggest
from zephyr_kit.plugins import Plugins

if TYPE_CHECKING:
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.cli.views import View
    from zephyr_kit.corpus import Corpus
    from zephyr_kit.inspection import Inspection
    from zephyr_kit.portion import Portion
    from zephyr_kit.preset import Preset, Stage
    from zephyr_kit.protocols import Start, Tokenizer
    from zephyr_kit.stages import TrainStage


@click.command()
@click.argument("preset", shell_complete=complete_preset)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value, as in `zkit run`.")
@click.option("--stage", "only", help="Whose data to look at.  [default: those of every stage that trains]")
@click.option("--examples", type=click.IntRange(0), default=3, show_default=True, help="How many to show of each stage.")
@click.option("--limit", type=click.IntRange(1), help="Read at most so many rows of each table of data.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write it all as one HTML file, too.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="The run whose stages have gathered data.  [default: runs/NAME]"
)
@click.option("--smoke", is_flag=True, help="The generated rows of `zkit run --smoke`.")
@click.pass_obj
def preview(
    plugins: Plugins,
    preset: str,
    changes: tuple[str, ...],
    only: str | None,
    examples: int,
    limit: int | None,
    html: Path | None,
    output: Path | None,
    smoke: bool,  # noqa: FBT001  click's way
) -> None:
    """Show what PRESET would train on, before it does.

    Figures, lengths, and examples token by token.

    No model is loaded, nothing is trained. The exit code is 1 when `zkit run` would refuse the data;
    with --limit, as far as the rows that are read can tell.
    """
    from zephyr_kit.preset import load
    from zephyr_kit.smoke import miniature

    resolved = load(find_preset(preset, plugins), plugins.offers, changes=changes)
    run = output or Path("runs") / (f"{resolved.name}-smoke" if smoke else resolved.name)
    with TemporaryDirectory() as folder, cache_in_use():
        if smoke:
            resolved = miniature(resolved, Path(folder))
        stages = _training(resolved, run, only)
        if not smoke:
            _refuse_what_cannot_be_read(resolved, stages)
        _preview(resolved, [_Look(resolved, stage, task, limit) for stage, task in stages], examples=examples, html=html)


def _preview(preset: Preset, looks: Sequence[_Look], *, examples: int, html: Path | None) -> None:
    from rich.console import Console

    from zephyr_kit.cli.preview_page import write_page
    from zephyr_kit.cli.preview_terminal import show
    from zephyr_kit.cli.tell import Teller

    console = Console(highlight=False)
    views: list[View] = []
    for look in looks:
        views.append(look.view(Teller(console), num_examples=examples))
        show(console, views[-1])
    if html is not None:
        write_page(html, preset, views)
        console.print(f"\npage     {html}", markup=False)
    if refused := [view.stage for view in views if not view.passed]:
        raise ZkitError(f"the data of {' and '.join(refused)} would be refused; see above")


def _training(preset: Preset, run: Path, only: str | None) -> list[tuple[Stage, TrainStage]]:
    """The stages to look at, with what earlier ones have gathered in the folder of the run."""
    from zephyr_kit.preset import bound
    from zephyr_kit.stages import TrainStage

    stages = [(stage, stage.task) for stage in (bound(one, run) for one in preset.stages) if isinstance(stage.task, TrainStage)]
    if not stages:
        raise ZkitError(f"{preset.file}: no stage trains, so there is no data to look at")
    names = [stage.name for stage, _ in stages]
    if only is not None and only not in names:
        raise ZkitError(f"{preset.file}: no stage `{only}` trains{suggest(only, names)}")
    return [(stage, task) for stage, task in stages if only in (None, stage.name)]


def _refuse_what_cannot_be_read(preset: Preset, stages: Sequence[tuple[Stage, TrainStage]]) -> None:
    """Told as `zkit run` does; but the device that the preset needs is not needed here."""
    from concurrent.futures import ThreadPoolExecutor

    from zephyr_kit.devices import find_device
    from zephyr_kit.preflight import NotReady
    from zephyr_kit.protocols import Start
    from zephyr_kit.stages import TrainStage

    # Every tokenizer comes from where the first model does.
    first = next(stage for stage in preset.stages if isinstance(stage.task, TrainStage))
    start = Start(None, first.changed, preset.seed)
    checks: list[Callable[[], Sequence[str]]] = [partial(first.model.problems, find_device("auto"), start=start)]
    for portion in chain.from_iterable((*task.data, *task.held_out) for _, task in stages):
        checks += [portion.source.problems, *(each.problems for each in portion.filters)]
    # Side by side, for each may wait for a network that is not there.
    with ThreadPoolExecutor() as pool:
        found = dict.fromkeys(chain.from_iterable(pool.map(lambda check: check(), checks)))
    if found:
        listed = "\n".join(f"  - {line}" for line in found)
        raise NotReady(f"{preset.file} cannot be previewed here:\n{listed}\nto look at generated rows instead: add --smoke")


@dataclass(frozen=True)
class _Look:
    """A look at the data of one stage."""

    preset: Preset
    stage: Stage
    task: TrainStage
    limit: int | None

    def view(self, teller: Teller, *, num_examples: int) -> View:
        """Tokenise, unless that was done before, and measure."""
        from zephyr_kit.cli.views import View, view
        from zephyr_kit.gathered import are_there
        from zephyr_kit.stage_data import length_problem

        task = self.task
        if not are_there((*task.data, *task.held_out)):
            return View(self.stage.name, "not there yet: its data comes from an earlier stage, which has not ended")
        data = self._inspect(task.data, "data", teller)
        held_out = self._inspect(task.held_out, "held_out", teller) if task.held_out else None
        problem = length_problem(self.stage, task, self._start)
        refusals = [*([problem] if problem else []), *self._refused(data.corpus, "data")]
        if held_out is not None:
            refusals += self._refused(held_out.corpus, "held_out")
        about = f"max_length = {task.max_length:,}, too_long = {task.too_long}"
        if self.limit is not None:
            about += f", at most {self.limit:,} rows of each table are read"
        return view(
            self.stage.name,
            about,
            data,
            held_out,
            gate=task.gate,
            train=task.train,
            seed=self.preset.seed,
            num_examples=num_examples,
            whole=self.limit is None,
            refusals=refusals,
        )

    def _inspect(self, portions: Sequence[Portion], name: str, teller: Teller) -> Inspection:
        from zephyr_kit.corpus import prepare
        from zephyr_kit.inspection import Inspection
        from zephyr_kit.stage_data import door_of

        taken = [replace(portion, limit=min(filter(None, (portion.limit, self.limit)), default=None)) for portion in portions]
        label = f"{name} of {self.stage.name}"
        door, folder = door_of(self.task), cache_folder("corpora")
        corpus = prepare(taken, self._tokenizer, door, cache=folder, track=lambda part: teller.track(f"{part} {label}"))
        return Inspection(corpus, self._tokenizer, taken)

    def _refused(self, corpus: Corpus, name: str) -> Iterator[str]:
        from zephyr_kit.corpus import DataError, refuse_bad_rows

        try:
            refuse_bad_rows(corpus, allowed=self.task.bad_rows, name=f"stages.{self.stage.name}.{name}")
        except DataError as error:
            yield str(error)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return self.stage.model.tokenizer(self._start)

    @property
    def _start(self) -> Start:
        from zephyr_kit.protocols import Start

        return Start(None, self.stage.changed, self.preset.seed)

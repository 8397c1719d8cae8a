"""`zkit evaluate`."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_kit.cli.completion import complete_suite
from zephyr_kit.plugins import Plugins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zephyr_kit.protocols import Suite
    from zephyr_kit.subjects import Subject

SUITE = "NAME[:KEY=VALUE,…]"
PLACES = "RUN/evaluations, or evaluations/MODEL"
EPILOG = """\b
Examples:
zkit evaluate runs/quickstart --suite perplexity:data=[{use="jsonl",path="held-out.jsonl"}]
zkit evaluate runs/a runs/b --stage dpo --suite suites.toml
zkit evaluate owner/name --model dtype=float32 --suite lm-eval:tasks=["arc"]
"""


@click.command(epilog=EPILOG)
@click.argument("models", nargs=-1, required=True, metavar="RUN|MODEL…")
@click.option(
    "--suite",
    "suites",
    multiple=True,
    required=True,
    metavar=SUITE,
    shell_complete=complete_suite,
    help="What to measure; or a TOML file of suites.",
)
@click.option("--stage", "stages", multiple=True, help="Only the model of this stage of a run. Repeatable.  [default: all]")
@click.option("--base", is_flag=True, help="The model that a run began with, too.")
@click.option("--model", "keys", multiple=True, metavar="KEY=VALUE", help="How to load a model of no run: dtype=float32. Repeatable.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help=f"Where results go.  [default: {PLACES}]")
@click.option("--device", default="auto", show_default=True)
@click.pass_obj
def evaluate(
    plugins: Plugins,
    models: tuple[str, ...],
    suites: tuple[str, ...],
    stages: tuple[str, ...],
    base: bool,  # noqa: FBT001  click's way
    keys: tuple[str, ...],
    output: Path | None,
    device: str,
) -> None:
    """Measure the models of a run, or any others. What was killed goes on; the run's report is written again."""
    from zephyr_kit.answers import Answers
    from zephyr_kit.cache import cache_folder, cache_in_use
    from zephyr_kit.cli.models import find_subjects, run_of
    from zephyr_kit.cli.suites import read_suites
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.devices import take_device
    from zephyr_kit.disk import disk_errors_told
    from zephyr_kit.evaluating import evaluate_once
    from zephyr_kit.evaluations import FOLDER
    from zephyr_kit.preset import bound_suite
    from zephyr_kit.report import write_reports
    from zephyr_kit.runs import RunFolder
    from zephyr_kit.subjects import Subject

    teller, place, run = Teller(), take_device(device), run_of(models[0])
    folder = output or (run / FOLDER if run else Path(FOLDER) / Path(models[0]).name)
    wanted = [(name, bound_suite(suite, run) if run else suite, settings) for name, suite, settings in read_suites(suites, plugins.offers)]
    with cache_in_use(), closing(Answers(cache_folder("answers"))) as answers:
        make = partial(Subject, device=place, answers=answers, narrator=teller)
        subjects = find_subjects(models, plugins, make, stages=stages, base=base, keys=keys)
        _refuse([suite for _, suite, _ in wanted], subjects)
        with disk_errors_told(folder), RunFolder(folder).locked():
            for name, suite, settings in wanted:
                measured = evaluate_once(name, suite, settings, subjects, folder=folder, narrator=teller)
                for evaluation in () if measured.before else measured.evaluations:
                    teller.show(evaluation)
            reports = write_reports(run) if run and output is None else []
    teller.say(f"\nresults  {folder}/*/evaluation.json")
    for report in reports:
        teller.say(f"report   {report}")


def _refuse(suites: list[Suite], subjects: Mapping[str, Subject]) -> None:
    """Raise with all that stands in the way, before anything is loaded."""
    from zephyr_kit.gathered import portions_in
    from zephyr_kit.preflight import NotReady

    portions = [portion for suite in suites for each in portions_in(suite).values() for portion in each]
    found = [line for portion in portions for line in portion.source.problems()]
    found += [line for portion in portions for each in portion.filters for line in each.problems()]
    found += [line for suite in suites for line in suite.problems()]
    found += [line for one in subjects.values() for line in one.backend.problems(one.device, start=one.start)]
    if found:
        raise NotReady("\n".join(["cannot be measured here:", *(f"  - {line}" for line in dict.fromkeys(found))]))

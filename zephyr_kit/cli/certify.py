"""`zkit certify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zephyr_kit.cli.find import find_preset
from zephyr_kit.plugins import Plugins

if TYPE_CHECKING:
    from rich.console import Console

    from zephyr_kit.certificate import Certificate

STYLES = {"pass": "bold green", "fail": "bold red", "broken": "bold yellow", "not tried": "dim"}
WORDS = {"pass": "PASS", "fail": "FAIL", "broken": "BREAKS", "not tried": "not tried"}


@click.command()
@click.argument("preset")
@click.option("--stage", "names", multiple=True, metavar="NAME", help="Only this stage. Repeatable.  [default: all that train]")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value, as in `zkit run`.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True, help="What is computed in.")
@click.option("--tolerance", type=click.FloatRange(0, min_open=True), help="What may differ.  [default: 1e-3, and 1e-9 in float64]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …; ranks are compared on a CPU.")
@click.option("--ranks", type=click.IntRange(1), help="Processes that share the steps; 1: none.  [default: 2, or context_parallel]")
@click.option("--steps", default=3, show_default=True, type=click.IntRange(1), help="Optimiser steps.")
@click.option("--examples", default=4, show_default=True, type=click.IntRange(1), help="Examples in each.")
@click.option("--output", type=click.Path(path_type=Path), help="The run's folder, to start where its stages ended.  [default: runs/NAME]")
@click.option("--smoke", is_flag=True, help="In miniature: shrunken random model, generated rows, offline.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def certify(
    plugins: Plugins,
    /,
    preset: str,
    names: tuple[str, ...],
    changes: tuple[str, ...],
    output: Path | None,
    as_json: bool,  # noqa: FBT001  click's way
    **how: Any,
) -> int:
    """Prove that steps do not depend on how they are computed.

    Takes a few steps of each stage of PRESET that trains, on its own data and model: in other
    micro-batches, other orders, with prompts shared and repeated, by every attention kernel that runs
    here, on several ranks; and compares losses and gradients. The exit code is 1 when something differs.
    """
    from rich.console import Console

    from zephyr_kit.cache import cache_in_use
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.preset import load

    resolved = load(find_preset(preset, plugins), plugins.offers, changes=changes)
    teller = Teller(Console(highlight=False, soft_wrap=True, stderr=as_json))
    with cache_in_use():
        found = _certificates(plugins, resolved, names, output or Path("runs") / resolved.name, teller, **how)
    if as_json:
        click.echo(json.dumps({"preset": resolved.name, "stages": [each.facts() for each in found]}, indent=1))
    else:
        for each in found:
            show(each, teller.console)
    return 0 if all(each.holds for each in found) else 1


def _certificates(
    plugins: Plugins,
    preset: Any,
    names: tuple[str, ...],
    folder: Path,
    teller: Any,
    *,
    dtype: Any,
    tolerance: float | None,
    device: str,
    ranks: int | None,
    steps: int,
    examples: int,
    smoke: bool,
) -> list[Certificate]:
    import tempfile

    from zephyr_kit.certificate import TOLERANCES
    from zephyr_kit.certificate import certify as certified
    from zephyr_kit.devices import take_device
    from zephyr_kit.preset import training_stages
    from zephyr_kit.protocols import Attention
    from zephyr_kit.runs import RunFolder
    from zephyr_kit.smoke import miniature
    from zephyr_kit.trial import Size, trial_of

    with tempfile.TemporaryDirectory() as small:
        preset = miniature(preset, Path(small)) if smoke else preset
        trials = [
            trial_of(preset, stage, RunFolder(folder), take_device(device), dtype, Size(steps, examples), teller)
            for stage in training_stages(preset, names)
        ]
        most, kernels = tolerance or TOLERANCES[dtype], plugins.offered(Attention)
        num_ranks = [ranks or max(2, trial.task.train.context_parallel) for trial in trials]
        return [
            certified(trial, tolerance=most, attentions=kernels, ranks=num, narrator=teller)
            for trial, num in zip(trials, num_ranks, strict=True)
        ]


def show(certificate: Certificate, console: Console) -> None:
    """Print a certificate."""
    from rich.table import Table
    from rich.text import Text

    one = certificate
    console.print()
    console.print(Text.assemble((f"stage {one.stage}", "bold"), f": objective {one.objective}, in {one.dtype} on {one.device}"))
    console.print(f"  {one.num_steps} steps, {one.num_examples} examples, {one.num_tokens:,} tokens, from {one.start}", markup=False)
    for line in _remarks(one):
        console.print(f"  {line}", markup=False)
    tried = [each for each in one.comparisons if each.verdict != "not tried"]
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("  beside one batch a step")
    table.add_column("loss", justify="right")
    table.add_column("gradient", justify="right")
    table.add_column()
    for each in tried:
        table.add_row(f"  {each.what}", *map(_figure, (each.loss, each.gradient)), Text(WORDS[each.verdict], STYLES[each.verdict]))
    console.print(table)
    for each in one.comparisons:
        if each.remark:
            console.print(f"  {each.what}: {WORDS[each.verdict]}: {each.remark}", markup=False)
    told = Text("certified", "bold green") if one.holds else Text("not certified", "bold red")
    console.print(Text.assemble("  ", told, f": largest difference, as a share of the largest value; {one.tolerance:g} may be rounding"))


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}" if value else "0"


def _remarks(certificate: Certificate) -> list[str]:
    off = certificate.switched_off
    by_value = sorted({value: sum(v == value for v in off.values()) for value in off.values()}.items())
    dropout = ", ".join(f"{value:g} in {count} module{'s' if count > 1 else ''}" for value, count in by_value)
    told = [f"dropout is switched off ({dropout}): which units it hides depends on how a step is cut"] if off else []
    if certificate.offset:
        told.append(f"weights are moved by {certificate.offset:.1e} at random: where they are the reference's, all margins are 0")
    return [*told, *(f"the objective breaks the law `{law}`: {reason}" for law, reason in certificate.breaks.items())]

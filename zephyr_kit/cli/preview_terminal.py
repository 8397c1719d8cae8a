"""`zkit preview` in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from zephyr_kit.cli.passages import Passage, Token, runs, visible
from zephyr_kit.cli.views import NUM_REASONS, View
from zephyr_kit.lengths import Lengths

TRAINED, CONTEXT = "bold green", "dim"
WIDTH = 24
"""Of a histogram's highest bar."""
EIGHTHS = " ▏▎▍▌▋▊▉"
NUM_SAMPLES = 2


def show(console: Console, view: View) -> None:
    """Print what there is to see of a stage."""
    console.print()
    console.print(Rule(Text(f"{view.stage}: {view.about}", style="bold"), align="left"))
    for refusal in view.refusals:
        console.print(Text(refusal, style="bold red"))
    for block in _blocks(view):
        console.print()
        console.print(block)
    _examples(console, view)


def _blocks(view: View) -> Iterator[RenderableType]:
    if view.figures:
        yield _figures(view)
    if view.thresholds or view.unjudged:
        yield _thresholds(view)
    for title, reasons in view.fates.items():
        if reasons:
            yield _reasons(f"why {title}", reasons)
    for portion in view.portions:
        for tally in portion.get("sieve", {}).get("filters", ()):
            yield Group(*_filter(tally))
    if view.lengths:
        yield _quantiles(view)
        yield Columns([_histogram(lengths) for lengths in view.lengths], padding=(1, 4))
        yield _pairs("tokens of the longest", [(f"{tokens:,}", origin) for origin, tokens in view.longest])


def _figures(view: View) -> Table:
    table = _table("")
    for name in view.columns:
        table.add_column(name, justify="right")
    table.add_column("", style=CONTEXT)
    for figure in view.figures:
        gaps = [""] * (len(view.columns) - len(figure.values))
        table.add_row(figure.name, *figure.values, *gaps, figure.meaning)
    return table


def _thresholds(view: View) -> Table:
    table = _table("gate")
    table.add_column("")
    table.add_column("", style=CONTEXT)
    for threshold in view.thresholds:
        verdict = Text("✓ passes", "green") if threshold.passed else Text("✗ fails", "bold red")
        table.add_row(threshold.rule, verdict, threshold.part.told)
    for threshold in view.unjudged:
        table.add_row(threshold.rule, Text("– not judged", CONTEXT), f"not all rows are read; {threshold.part.told}")
    return table


def _reasons(title: str, reasons: Mapping[str, int]) -> Table:
    lines = [(f"{count:,}", reason) for reason, count in islice(reasons.items(), NUM_REASONS)]
    if len(reasons) > len(lines):
        lines.append(("…", f"and {len(reasons) - len(lines):,} more reasons"))
    return _pairs(title, lines)


def _filter(tally: Mapping[str, Any]) -> Iterator[RenderableType]:
    seen, removed, changed = (int(tally[key]) for key in ("seen", "removed", "changed"))
    yield Text.assemble((f"filter {tally['name']}", "bold"), f": {removed:,} removed and {changed:,} changed of {seen:,}")
    for kind, sign in (("removed", "-"), ("changed", "~")):
        for sample in islice(tally.get("samples", {}).get(kind, ()), NUM_SAMPLES):
            yield Text(f"  {sign} {sample['origin']}: {sample['reason']}")
            for key in ("before", "after"):
                if key in sample:
                    yield Padding(Text(f"{key}: {sample[key]}", CONTEXT), (0, 0, 0, 6))


def _quantiles(view: View) -> Table:
    table = _table("tokens of an example")
    for name in ("mean", "5 %", "50 %", "95 %", "longest"):
        table.add_column(name, justify="right")
    for lengths in view.lengths:
        table.add_row(lengths.name, f"{lengths.mean:,.1f}", *(f"{value:,}" for value in lengths.quantiles))
    return table


def _histogram(lengths: Lengths) -> Table:
    table = Table.grid(padding=(0, 1))
    table.title, table.title_justify, table.title_style = lengths.name, "left", "bold"
    table.add_column(justify="right", style=CONTEXT)
    table.add_column(width=WIDTH, style="cyan")
    table.add_column(justify="right")
    for bar in lengths.bars:
        table.add_row(bar.label, _bar(bar.share), f"{bar.count:,}")
    return table


def _bar(share: float) -> str:
    """A bar in eighths of a letter; what is not nothing is seen."""
    eighths = max(round(share * WIDTH * 8), 1 if share else 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _examples(console: Console, view: View) -> None:
    if not view.examples:
        return
    # Where no colour comes through, brackets tell what is trained.
    brackets = "" if console.color_system else "«»"
    legend = Text.assemble("trained tokens are ", (_bracketed("so", brackets), TRAINED), ", the others ", ("so", CONTEXT))
    console.print(Text.assemble("\n", legend))
    for number, example in enumerate(view.examples, 1):
        console.print(Text(f"\nexample {number}: {example.origin}", style="bold"))
        for passage in example.passages:
            console.print(Text(f"{passage.name}: {len(passage.tokens):,} tokens, {passage.num_trained:,} of them trained", "cyan"))
            console.print(Padding(_passage(passage, brackets), (0, 0, 0, 2)))


def _passage(passage: Passage, brackets: str) -> Text:
    text = Text()
    for part in passage.parts:
        if isinstance(part, int):
            text.append(f"\n… {part:,} tokens left out …\n", "italic")
        else:
            for trained, run in runs(part):
                _append(text, run, brackets if trained else "", TRAINED if trained else CONTEXT)
    return text


def _append(text: Text, run: Sequence[Token], brackets: str, style: str) -> None:
    text.append(_bracketed("".join(visible(token.text) for token in run), brackets), style)


def _bracketed(text: str, brackets: str) -> str:
    return f"{brackets[0]}{text}{brackets[1]}" if brackets else text


def _pairs(title: str, lines: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for count, told in lines:
        table.add_row(count, Text(told))
    return table


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    return table

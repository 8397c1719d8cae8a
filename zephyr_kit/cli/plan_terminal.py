"""A plan, in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zephyr_kit.cli.planned import Planned
from zephyr_kit.devices import CPU_EFFICIENCY, GPU_EFFICIENCY, Device
from zephyr_kit.forecast import Forecast
from zephyr_kit.preset import Preset
from zephyr_kit.sizes import in_words
from zephyr_kit.words import duration, short
from zephyr_kit.workload import Workload

BAR = 40


def show(preset: Preset, device: Device, count: int, planned: Sequence[Planned], console: Console) -> None:
    """Print every stage, on so many of the device."""
    many, each_has = (f"{count} x ", " each") if count > 1 else ("", "")
    console.print(f"{preset.name} on {many}{device.name}, {in_words(device.memory)}{each_has}", markup=False, style="bold")
    for each in planned:
        console.print()
        _show_stage(each, console)


def _show_stage(planned: Planned, console: Console) -> None:
    forecast = planned.forecast
    if forecast is not None:
        console.print(_verdict(forecast))
        console.print(_parts(forecast))
        console.print(_figures(forecast))
    else:
        console.print(Text(f"stage {planned.stage.name}", "bold"))
    for remark in planned.remarks:
        console.print(f"  note: {remark}", markup=False)
    if planned.remedy is not None:
        peak = in_words(planned.remedy.forecast.peak)
        console.print(f"  it fits, with about {peak}, if you add:\n    {planned.remedy.options}", markup=False)
    elif not planned.fits:
        console.print("  no setting that is known makes it fit; take a smaller model, or more devices", markup=False)


def _verdict(forecast: Forecast) -> Text:
    told = f"about {in_words(forecast.peak)} of {in_words(forecast.device.memory)} ({forecast.peak / forecast.device.memory:.0%})"
    verdict = ("fits", "bold green") if forecast.fits else ("does not fit", "bold red")
    return Text.assemble((f"stage {forecast.stage}", "bold"), ": ", verdict, ", ", told)


def _parts(forecast: Forecast) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 1), pad_edge=False)
    table.add_column(min_width=17)
    table.add_column(justify="right", min_width=8)
    table.add_column()
    whole = max(forecast.peak, forecast.device.memory)
    for name, size in sorted(forecast.parts.items(), key=lambda part: -part[1]):
        table.add_row(f"  {name}", in_words(size), Text("█" * max(1, round(BAR * size / whole)), "cyan"))
    return table


def _figures(forecast: Forecast) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 1), pad_edge=False)
    table.add_column(min_width=17)
    table.add_column()
    for name, told in _lines(forecast):
        table.add_row(f"  {name}", Text(told))
    return table


def _lines(forecast: Forecast) -> Iterator[tuple[str, str]]:
    shape, work = forecast.rehearsal.shape, forecast.workload
    share = shape.num_trained / shape.num_parameters
    yield "model", f"{short(shape.num_parameters)} parameters, {short(shape.num_trained)} of them trained ({share:.1%})"
    if forecast.num_devices > 1:
        yield "devices", f"{'each has a share' if forecast.sharded else 'each has a copy'} of the weights"
    by, largest = "chosen" if forecast.chosen else "set", forecast.rehearsal.num_tokens
    limit = "at most" if largest <= forecast.tokens_per_batch else "but for examples that are longer"
    yield "batches", f"{by} to {forecast.tokens_per_batch:,} tokens {limit}, the largest has {largest:,}"
    if work is not None:
        yield from _data_lines(work)
    yield "a checkpoint", f"{in_words(forecast.rehearsal.state)} on the disk"
    yield "speed", _speed(forecast)
    if forecast.seconds is not None:
        yield "time", f"about {duration(forecast.seconds)} of training"


def _data_lines(work: Workload) -> Iterator[tuple[str, str]]:
    yield "data", f"{work.num_examples:,} examples, {work.tokens_per_epoch:,} tokens, the longest {work.longest:,}"
    if work.saved:
        yield "shared prompts", f"save {work.saved:.0%} of the tokens"
    yield "steps", f"{work.num_steps:,} of about {work.tokens_per_step:,} tokens, {work.epochs:.3g} epochs"
    packing = f"{work.batches_per_step:.3g} batches a step, {work.packing:.0%} full"
    yield "packing", "each step is one batch" if work.batches_per_step == 1 else packing


def _speed(forecast: Forecast) -> str:
    if forecast.batch_seconds is None:
        return "not known: the card is not in the table"
    tabled = forecast.device.tabled_rate is not None
    basis = f"{GPU_EFFICIENCY} of a datasheet's rate" if tabled else f"{CPU_EFFICIENCY} of a rate measured now"
    return f"about {forecast.rehearsal.num_tokens / forecast.batch_seconds:,.0f} tokens/s, from {basis}"

"""`zkit run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_kit import ZkitError
from zephyr_kit.cli.find import find_preset
from zephyr_kit.config import PresetError
from zephyr_kit.plugins import Plugins
from zephyr_kit.redaction import names_of_secrets_in

if TYPE_CHECKING:
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.preset import Preset
    from zephyr_kit.protocols import Evaluation


@click.command()
@click.argument("preset")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value: stages.dpo.objective.beta=0.05. Repeatable.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="The run's folder.  [default: runs/NAME]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--smoke", is_flag=True, help="The same pipeline in miniature: shrunken random model, generated rows, a few steps, offline.")
@click.pass_obj
def run(plugins: Plugins, preset: str, changes: tuple[str, ...], output: Path | None, device: str, smoke: bool) -> None:  # noqa: FBT001  click's way
    """Run PRESET, a file or a name: start it, or go on where it stood."""
    from zephyr_kit.preset import load

    resolved = load(find_preset(preset, plugins), plugins.offers, changes=changes)
    _refuse_secrets(resolved)
    folder = output or Path("runs") / (f"{resolved.name}-smoke" if smoke else resolved.name)
    _run(plugins, resolved, folder, device, smoke=smoke)


def _run(plugins: Plugins, preset: Preset, folder: Path, device: str, *, smoke: bool) -> None:
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.pipeline import Pipeline
    from zephyr_kit.runs import RunFolder
    from zephyr_kit.smoke import miniature
    from zephyr_kit.world import find_device

    teller = Teller()
    plugins.add(teller, "zkit-teller")
    if smoke:
        _make(folder)
        preset = miniature(preset, folder / "smoke")
    pipeline = Pipeline(preset, RunFolder(folder), plugins, teller, find_device(device))
    if not smoke:
        pipeline.check()
        _make(folder)
    teller.say(f"{preset.name} in {folder} on {pipeline.device}")
    if others := plugins.third_parties():
        teller.say(f"with plugins of others, which may do whatever zkit may: {', '.join(map(str, others))} (--no-third-party goes without)")
    try:
        evaluations = pipeline.run()
    except KeyboardInterrupt:
        teller.say("the same command goes on where it stood: after the last checkpoint, and with every answer that came")
        raise
    _conclude(teller, preset, folder, evaluations)


def _refuse_secrets(preset: Preset) -> None:
    """A preset is written into the run's folder, and into the card of every model."""
    for name in names_of_secrets_in(json.dumps(preset.table, ensure_ascii=False, default=str)):
        raise PresetError(
            f"{preset.file}: holds the value of the environment variable {name}, which would be written into the run; "
            f'name the variable instead, as in api_key_env = "{name}"'
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZkitError(f"cannot make the folder of the run, {folder}: {error.strerror}; choose another with --output") from error


def _conclude(teller: Teller, preset: Preset, folder: Path, evaluations: list[Evaluation]) -> None:
    from zephyr_kit.report import write_report

    for evaluation in evaluations:
        teller.show(evaluation)
    report = write_report(preset, folder, evaluations)
    last = [stage.name for stage in preset.stages if (folder / stage.name / "model").is_dir()]
    teller.say("")
    for name in last:
        teller.say(f"model    {folder / name / 'model'}")
    teller.say(f"metrics  {folder}/*/metrics.jsonl")
    teller.say(f"report   {report}")
    if last:
        teller.say(f"to talk to it:  zkit chat {folder}")

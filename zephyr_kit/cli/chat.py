"""`zkit chat`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_kit import ZkitError
from zephyr_kit.config import suggest
from zephyr_kit.plugins import Plugins

if TYPE_CHECKING:
    from zephyr_kit.protocols import Policy, Sampling


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--stage", help="Whose model to talk to.  [default: the last one that is trained]")
@click.option("--device", default="auto", show_default=True)
@click.option("--system", help="System message.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.7, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-p", type=click.FloatRange(0, 1), default=0.95, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.pass_obj
def chat(
    plugins: Plugins,
    run: Path,
    stage: str | None,
    device: str,
    system: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
) -> None:
    """Talk to a model of RUN, the folder of a run. An empty line or Ctrl-D ends."""
    from zephyr_kit.protocols import Sampling

    policy = _open(plugins, run, stage, device)
    _talk(policy, system, Sampling(max_new_tokens, temperature, top_p, seed))


def _open(plugins: Plugins, run: Path, stage: str | None, device: str) -> Policy:
    from zephyr_kit.devices import find_device
    from zephyr_kit.preset import load
    from zephyr_kit.protocols import Start

    if not (run / "preset.toml").exists():
        raise ZkitError(f"{run}: holds no preset.toml; give the folder that `zkit run` wrote")
    trained = {one.name: one for one in load(run / "preset.toml", plugins.offers).stages if (run / one.name / "model").is_dir()}
    if not trained:
        raise ZkitError(f"{run}: no stage has ended yet, so there is no model to talk to")
    name = stage or list(trained)[-1]
    if name not in trained:
        raise ZkitError(f"{run}: has no trained stage `{name}`{suggest(name, trained)}")
    click.echo(f"{run / name / 'model'} (an empty line ends)")
    return trained[name].model.load(find_device(device), start=Start(run / name / "model"), train=False)


def _talk(policy: Policy, system: str | None, sampling: Sampling) -> None:
    from zephyr_kit.example import Message
    from zephyr_kit.protocols import Request

    dialogue = [Message("system", system)] if system else []
    while line := _ask():
        dialogue.append(Message("user", line))
        ((_, reply),) = policy.generate([Request(tuple(dialogue), sampling)], on_text=lambda text: click.echo(text, nl=False))
        click.echo()
        dialogue.append(Message("assistant", reply.text))
        sampling = replace(sampling, seed=sampling.seed + 1)


def _ask() -> str:
    try:
        # Bytes that are no UTF-8 come as half characters, which no tokenizer can hold.
        return input("\n> ").strip().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except EOFError:
        return ""

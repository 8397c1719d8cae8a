"""`zkit chat`."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from zephyr_kit import ZkitError
from zephyr_kit.plugins import Plugins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zephyr_kit.protocols import Sampling
    from zephyr_kit.serving import Speaker


@click.command()
@click.argument("model", metavar="RUN|MODEL")
@click.option("--stage", help="Whose model of a run to talk to.  [default: the last one that is trained]")
@click.option("--against", metavar="RUN|MODEL", help="Another one, to answer beside it: a run, a stage's model folder, or owner/name.")
@click.option("--device", default="auto", show_default=True)
@click.option("--system", help="System message.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.7, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-p", type=click.FloatRange(0, 1), default=0.95, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True, help="0 for no limit.")
@click.option("--max-tokens", "--max-new-tokens", "max_tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--serve", is_flag=True, help="Serve an OpenAI-compatible API, and a page to chat on, on 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--token-env", metavar="NAME", help="Answer only who sends the value of this environment variable as a bearer's token.")
@click.pass_obj
def chat(
    plugins: Plugins,
    model: str,
    stage: str | None,
    against: str | None,
    device: str,
    system: str | None,
    temperature: float,
    top_p: float,
    top_k: int,
    max_tokens: int,
    seed: int,
    serve: bool,  # noqa: FBT001  click's way
    port: int,
    token_env: str | None,
) -> None:
    """Talk to a model, or serve it.

    RUN is the folder of a run, or RUN/STAGE; MODEL, a folder in Hugging Face format, or owner/name. In the chat, /help tells the
    commands; an empty line or Ctrl-D ends.
    """
    from zephyr_kit.cli.talk import Talk
    from zephyr_kit.protocols import Sampling

    token = _token(token_env) if token_env else None
    sampling = Sampling(max_tokens, temperature, top_p, seed, top_k)
    speakers = _open(plugins, [(model, stage), *([(against, None)] if against else [])], device)
    if serve:
        _serve(speakers, sampling, port, token)
        return
    click.echo(f"{' against '.join(speakers)} (an empty line ends)")
    talk = Talk(_named(speakers), sampling, system)
    while line := _ask():
        talk.hear(line)


def _open(plugins: Plugins, given: list[tuple[str, str | None]], device: str) -> dict[str, Speaker]:
    """Load each model, under its place."""
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.devices import take_device
    from zephyr_kit.models import find_model
    from zephyr_kit.serving import Speaker

    found = [find_model(name, plugins, stage=stage) for name, stage in given]
    if len({one.place for one in found}) < len(found):
        raise ZkitError(f"--against {given[-1][0]}: is the same model; name another, as the folder of another stage: RUN/STAGE/model")
    where, speakers = take_device(device), {}
    for one in found:
        with Teller().track(f"loading {one.place}"):
            policy = one.backend.load(where, start=one.start, train=False)
        speakers[one.place] = Speaker(policy, one.backend.tokenizer(one.start))
    return speakers


def _named(speakers: Mapping[str, Speaker]) -> dict[str, Speaker]:
    """Under short names that differ: of a stage's model, run and stage."""
    from pathlib import Path

    short = {place: Path(place).absolute().parts[-3:-1] if place.endswith("/model") else (Path(place).name,) for place in speakers}
    names = {place: "-".join(parts) for place, parts in short.items()}
    return {name if list(names.values()).count(name) == 1 else place: speakers[place] for place, name in names.items()}


def _serve(speakers: Mapping[str, Speaker], sampling: Sampling, port: int, token: str | None) -> None:
    from zephyr_kit.serving import ChatServer

    named = _named(speakers)
    server = ChatServer(named, sampling, port=port, token=token)
    click.echo(f"serving {', '.join(named)} on {server.address} (Ctrl-C ends)")
    click.echo(f"  page     {server.address}/\n  API      base_url = \"{server.address}/v1\"{', with the token' if token else ''}")
    with suppress(KeyboardInterrupt):
        server.run()
    click.echo("no longer serving")


def _token(name: str) -> str:
    token = os.environ.get(name)
    if not token:
        raise ZkitError(f"--token-env {name}: there is no environment variable {name}, or it is empty")
    return token


def _ask() -> str:
    with suppress(ImportError):
        import readline  # noqa: F401  lines can be edited, and earlier ones called back
    try:
        # Bytes that are no UTF-8 come as half characters, which no tokenizer can hold.
        return input("\n> ").strip().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except EOFError:
        return ""

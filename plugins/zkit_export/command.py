"""`zkit export`."""

from __future__ import annotations

from pathlib import Path

import click

from zephyr_kit import ZkitError
from zephyr_kit.plugins import Plugins


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--to", required=True, type=click.Path(path_type=Path), help="The folder to write, which must not be there yet.")
@click.option("--stage", help="Whose model.  [default: the last one that is trained]")
@click.option("--merge", is_flag=True, help="Write an adapter's model whole, from a base in 4 or 8 bits too, instead of the adapter.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of whole weights.  [default: the model's own]")
@click.option(
    "--gguf",
    multiple=True,
    metavar="TYPE",
    help="Also a GGUF file: F32, F16, BF16, Q8_0; by llama.cpp Q4_K_M … Repeatable; the Modelfile is for the last.",
)
@click.option("--push", "repository", metavar="OWNER/NAME", help="Then hand the folder to the hub.")
@click.option("--public", is_flag=True, help="Let everybody see what is pushed to a new repository.")
@click.option("--device", default="auto", show_default=True, help="Where the models are compared.")
@click.pass_obj
def export(
    plugins: Plugins,
    run: str,
    to: Path,
    stage: str | None,
    merge: bool,  # noqa: FBT001  click's way
    dtype: str | None,
    gguf: tuple[str, ...],
    repository: str | None,
    public: bool,  # noqa: FBT001
    device: str,
) -> None:
    """Write a model of RUN for others to load.

    RUN is the folder of a run; others are transformers, peft, vLLM, llama.cpp and Ollama. What is written has weights or an
    adapter, tokenizer, chat template, generation settings and a model card. Its model is compared with the trained one on held-out
    dialogues; one that differs by more than its type explains is not kept.
    """
    from zephyr_kit.cli.tell import Teller
    from zephyr_kit.devices import take_device
    from zephyr_kit.models import find_model
    from zkit_export.exporting import Export
    from zkit_export.hub import check_hub, push
    from zkit_export.parity import lines
    from zkit_export.wish import Wish

    wish = Wish(to, merge, dtype, gguf)
    problems = list(wish.problems())
    if problems:
        raise ZkitError("\n".join(problems))
    if public and repository is None:
        raise ZkitError("--public: is for what is pushed; name the repository with --push OWNER/NAME")
    model = find_model(run, plugins, stage=stage)
    teller = Teller()
    leaving = Export(model, wish, take_device(device), teller)
    if repository is not None:
        if leaving.tied_to:
            raise ZkitError(f"--push {repository}: the adapter stands on {leaving.tied_to}, which nobody else has; add --merge")
        check_hub(repository, public=public)
    teller.say(f"{model.place} to {to}")
    found = leaving.run()
    for line in lines(found):
        teller.say(line)
    teller.say("the folder's template, and the tokens that its tokenizer makes of prompts, are as trained")
    if repository is not None:
        teller.say(f"pushed to {push(to, repository, public=public)}")

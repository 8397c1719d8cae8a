"""`zkit completion`, and what the shell offers for presets, runs, stages and suites."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class
from click.types import StringParamType

from zephyr_kit.plugins import Plugins

VARIABLE = "_ZKIT_COMPLETE"
PRESET = "preset.toml"
"""What makes a folder a run."""
WHERE = {
    "bash": 'eval "$(zkit completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(zkit completion zsh)"   in ~/.zshrc',
    "fish": "zkit completion fish > ~/.config/fish/completions/zkit.fish",
}


@click.command(epilog="\b\n" + "\n".join(WHERE.values()))
@click.argument("shell", type=click.Choice(list(WHERE)))
def completion(shell: str) -> None:
    """Print what makes a SHELL complete what is typed."""
    found = get_completion_class(shell)
    assert found is not None, "click knows these three"
    click.echo(found(click.get_current_context().find_root().command, {}, "zkit", VARIABLE).source())


def complete_preset(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001  click's signature
    """Names of presets, and files."""
    from zephyr_kit.cli.find import known_presets

    names = {file.stem for file in known_presets(context.find_object(Plugins) or Plugins()) if file.stem.startswith(incomplete)}
    return _items("file", names, incomplete)


def complete_suite(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001  click's signature
    """Names of suites, and files."""
    from zephyr_kit.protocols import Suite

    names = (context.find_object(Plugins) or Plugins()).offered(Suite)
    return _items("file", (name for name in names if name.startswith(incomplete)), incomplete)


class Run(StringParamType):
    """An argument that may be a run."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Runs, here and one folder down, and folders."""
        begun = glob.escape(incomplete)
        found = [Path(file).parent for depth in ("*", "*/*") for file in glob.iglob(f"{begun}{depth}/{PRESET}")]  # noqa: PTH207  a beginning is no path
        return _items("dir", map(str, found), incomplete)


class Stage(StringParamType):
    """A stage of the runs on the command line."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Those that have left a model."""
        given = [ctx.params.get(each.name or "") for each in ctx.command.params if isinstance(each.type, Run)]
        # Before an option that still lacks its value, click leaves the arguments as they are.
        places = [*ctx.args, *(place for value in given for place in ((value,) if isinstance(value, str) else value or ()))]
        models = [model for place in places for model in Path(place).glob(f"{glob.escape(incomplete)}*/model")]
        return [CompletionItem(name) for name in sorted({model.parent.name for model in models})]


def complete_runs(command: click.Command) -> None:
    """Have the shell complete the argument RUN of a command, a plugin's as well as ours, and its --stage."""
    of_runs = [each for each in command.params if isinstance(each, click.Argument) and (each.metavar or "").startswith("RUN")]
    for parameter in command.params if of_runs else ():
        if parameter.type is click.STRING and (parameter in of_runs or "--stage" in parameter.opts):
            parameter.type = Run() if parameter in of_runs else Stage()


def _items(kind: str, names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """The names, or else files or folders: in bash what stands before these is forgotten."""
    return [CompletionItem(incomplete, type=kind), *map(CompletionItem, sorted(names))]

"""`zkit completion`, and what the shell offers for a preset."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from zephyr_kit.plugins import Plugins

VARIABLE = "_ZKIT_COMPLETE"
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
    return [*(CompletionItem(name) for name in sorted(names)), CompletionItem(incomplete, type="file")]

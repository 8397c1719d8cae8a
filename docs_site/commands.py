"""The page of every command, from what `--help` prints."""

from __future__ import annotations

from collections.abc import Iterator

import click

from zephyr_kit.cli import build

WIDTH = 100


def commands_page() -> str:
    """Markdown: each command with its help, as it is printed."""
    parts = ["# Commands", "What `--help` prints, for `zkit` and for each of its commands, those of the built-in plugins included."]
    for path, text in helps():
        parts += [f"## `{path}`", f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def helps() -> Iterator[tuple[str, str]]:
    """Each command's path, and its help."""
    group = build()
    yield from _helps(group, "zkit", None)


def _helps(command: click.Command, path: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    context = click.Context(command, parent=parent, info_name=path.rpartition(" ")[2], terminal_width=WIDTH, max_content_width=WIDTH)
    yield path, command.get_help(context).rstrip()
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            yield from _helps(inner, f"{path} {name}", context)

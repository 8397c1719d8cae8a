"""A talk in the terminal, with one model or with two side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from zephyr_kit import ZkitError
from zephyr_kit.cli.harmless import harmless
from zephyr_kit.config import suggest
from zephyr_kit.example import Message
from zephyr_kit.protocols import Request, Sampling
from zephyr_kit.serving import Speaker

LEAST_WIDTH = 80
"""Columns of a terminal in which two replies stand side by side."""
REDRAWN_PER_SECOND = 8.0
NUMBERS: Mapping[str, tuple[str, click.ParamType[Any]]] = {
    "temperature": ("temperature", click.FloatRange(0, 2)),
    "top-p": ("top_p", click.FloatRange(0, 1)),
    "top-k": ("top_k", click.IntRange(0)),
    "max-tokens": ("max_new_tokens", click.IntRange(1)),
    "seed": ("seed", click.INT),
}
"""Commands that change a setting."""
HELP = """\
/system TEXT       set the system message; without TEXT, take it away
/temperature X     /top-p X   /top-k N   /max-tokens N   /seed N
/settings          what they are now
/again             another reply to the last message
/undo              take the last message back
/new               begin anew
//…                a message that begins with a slash
an empty line, or Ctrl-D, ends"""


class Talk:
    """What has been said, and how replies are written."""

    def __init__(self, speakers: Mapping[str, Speaker], sampling: Sampling, system: str | None, console: Console | None = None) -> None:
        self.speakers, self.sampling, self.system = speakers, sampling, system
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._said: dict[str, list[Message]] = {name: [] for name in speakers}
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: click.echo(HELP),
            "system": self._set_system,
            "settings": lambda _: click.echo(self._settings()),
            "again": lambda _: self._again(),
            "undo": lambda _: self._undo(),
            "new": lambda _: self._begin_anew(),
            **{name: lambda value, name=name: self._set(name, value) for name in NUMBERS},  # type: ignore[misc]
        }

    def hear(self, line: str) -> None:
        """Answer a message, or do what a command says."""
        if line.startswith("/") and not line.startswith("//"):
            self._obey(line[1:])
            return
        for said in self._said.values():
            said.append(Message("user", line[1:] if line.startswith("//") else line))
        self._reply()

    def _obey(self, line: str) -> None:
        name, _, value = line.partition(" ")
        if name not in self._commands:
            click.echo(f"there is no /{name}{suggest(name, self._commands)} (/help)")
            return
        self._commands[name](value.strip())

    def _set_system(self, text: str) -> None:
        self.system = text or None
        click.echo(f"system: {self.system or 'none'}")

    def _set(self, name: str, value: str) -> None:
        key, kind = NUMBERS[name]
        try:
            self.sampling = replace(self.sampling, **{key: kind.convert(value, None, None)})
        except click.BadParameter as error:
            click.echo(f"/{name}: {error.message}")
        else:
            click.echo(f"{name}: {getattr(self.sampling, key)}")

    def _settings(self) -> str:
        values = "  ".join(f"{name} {getattr(self.sampling, key)}" for name, (key, _) in NUMBERS.items())
        return f"{values}\nsystem: {self.system or 'none'}"

    def _again(self) -> None:
        if not any(self._said.values()):
            click.echo("nothing was said yet")
            return
        for said in self._said.values():
            if said[-1].role == "assistant":
                said.pop()
        self._reply()

    def _undo(self) -> None:
        for said in self._said.values():
            while said and said.pop().role != "user":
                pass
        left = next(iter(self._said.values()))
        click.echo(f"back to: {harmless(left[-1].content[:60])}" if left else "back to the beginning")

    def _begin_anew(self) -> None:
        for said in self._said.values():
            said.clear()
        click.echo("a new talk")

    def _reply(self) -> None:
        if len(self.speakers) > 1 and self.console.is_terminal and self.console.width >= LEAST_WIDTH:
            self._side_by_side()
        else:
            for name in self.speakers:
                if len(self.speakers) > 1:
                    click.echo(f"{harmless(name)}:")
                self._write(name, lambda text: click.echo(text, nl=False))
                click.echo()
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)

    def _side_by_side(self) -> None:
        texts = dict.fromkeys(self.speakers, "")

        def columns() -> Table:
            table = Table(expand=True)
            for name in texts:
                table.add_column(Text(harmless(name)), ratio=1, overflow="fold")
            table.add_row(*map(Text, texts.values()))
            return table

        with Live(columns(), console=self.console, refresh_per_second=REDRAWN_PER_SECOND, vertical_overflow="visible") as live:
            for name in self.speakers:

                def add(text: str, name: str = name) -> None:
                    texts[name] += text
                    live.update(columns())

                self._write(name, add)

    def _write(self, name: str, on_text: Callable[[str], None]) -> None:
        """One model's reply; Ctrl-C ends it, and what was said stays."""
        written: list[str] = []

        def hear(text: str) -> None:
            written.append(text)
            on_text(harmless(text))

        before = (Message("system", self.system),) if self.system else ()
        try:
            self.speakers[name].speak(Request((*before, *self._said[name]), self.sampling), on_text=hear)
        except KeyboardInterrupt:
            on_text(" …")
        except ZkitError as error:
            on_text(harmless(f"[{error}; /undo takes the last message back, /new begins anew]"))
            return
        self._said[name].append(Message("assistant", "".join(written).strip()))

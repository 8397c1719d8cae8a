"""Laws of what plugins add to the command line: presets and commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from zephyr_kit.plugins import Plugins
from zephyr_kit.preset import Preset, load
from zephyr_kit.smoke import miniature
from zephyr_kit.testing.laws import Laws


class PresetsLaws(Laws):
    """What `zkit run NAME` relies on."""

    subject = "folder"
    title = "Folders of presets"
    folder: Path

    def test_every_preset_resolves(self) -> None:
        """Every preset of the folder resolves, with the plugins that are installed.

        Without it, what is listed by name cannot be run.
        """
        assert self._presets(), f"no *.toml in {self.folder}"

    def test_every_preset_says_what_it_is(self) -> None:
        """Every preset has a description.

        Without it, `zkit presets` lists a name that says nothing.
        """
        silent = [name for name, preset in self._presets().items() if not preset.description.strip()]
        assert not silent, silent

    def test_every_preset_has_a_miniature(self, tmp_path: Path) -> None:
        """Every preset can be made small, offline.

        Without it, `--smoke` cannot try it.
        """
        for name, preset in self._presets().items():
            assert miniature(preset, tmp_path / name).stages

    def test_holds_nothing_but_presets(self) -> None:
        """All files in the folder are presets.

        Without it, what lies beside them is taken for one, or is never found.
        """
        others = [path.name for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".toml"]
        assert not others, others

    def _presets(self) -> Mapping[str, Preset]:
        offers = Plugins().offers
        return {path.stem: load(path, offers) for path in sorted(self.folder.glob("*.toml"))}


class CommandsLaws(Laws):
    """What `zkit --help` relies on."""

    subject = "plugin"
    title = "Commands"
    plugin: Any
    """A plugin: a module or an object with hooks."""

    def test_adds_commands(self) -> None:
        """It adds a command at least, and raises nothing.

        Without it, it is told of as broken whenever `zkit` is called.
        """
        assert self._commands()

    def test_every_command_says_what_it_does(self) -> None:
        """`zkit --help` has a line for each, and `--help` of each works.

        Without it, nobody finds out what it is for.
        """
        for name, command in self._commands().items():
            context = click.Context(command, info_name=name)
            assert command.get_short_help_str().strip(), f"`{name}` has no help: give its function a docstring"
            assert name in command.get_help(context)

    def test_names_can_be_typed(self) -> None:
        """Commands are small letters, digits and dashes.

        Without it, a shell needs quotes.
        """
        assert all(name == name.lower() and name.replace("-", "").isalnum() for name in self._commands())

    def _commands(self) -> Mapping[str, click.Command]:
        group, plugins = click.Group("zkit"), Plugins(discover=False)
        plugins.add(self.plugin, "laws")
        plugins.add_commands(group)
        assert not plugins.broken("laws"), plugins.broken("laws")
        return group.commands

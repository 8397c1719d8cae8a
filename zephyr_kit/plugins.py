"""Finding plugins, and asking them what they offer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from zephyr_kit import NAME, ZkitError, hookspecs, protocols
from zephyr_kit.config import suggest

if TYPE_CHECKING:
    import click

OFFERS: Mapping[type, tuple[str, str]] = {
    protocols.Objective: ("objective", "zkit_objectives"),
    protocols.DataSource: ("data source", "zkit_data_sources"),
    protocols.Backend: ("backend", "zkit_backends"),
    protocols.Attention: ("attention", "zkit_attentions"),
    protocols.OptimizerFactory: ("optimizer", "zkit_optimizers"),
    protocols.Judge: ("judge", "zkit_judges"),
    protocols.Suite: ("suite", "zkit_suites"),
}
"""For each protocol: what its offers are called, and the hook that offers them."""


class PluginError(ZkitError):
    """Two plugins disagree, or one cannot be used."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a plugin comes from."""

    name: str
    distribution: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


class Plugins:
    """A typed face over pluggy's manager."""

    def __init__(self, *extra: object, discover: bool = True) -> None:
        self.manager = pluggy.PluginManager(NAME)
        self.manager.add_hookspecs(hookspecs)
        self.origins: dict[str, Origin] = {}
        self.broken: dict[str, str] = {}
        if discover:
            self._discover()
        for plugin in extra:
            self.add(plugin)

    def add(self, plugin: object, name: str | None = None) -> None:
        """Register a plugin object; refuse a hook that does not exist."""
        known = _hook_names()
        for attribute in _hooks_of(plugin):
            if attribute not in known:
                raise PluginError(f"plugin {name or plugin!r} implements `{attribute}`, which is no hook{suggest(attribute, known)}")
        try:
            self.manager.register(plugin, name)
        except (ValueError, pluggy.PluginValidationError) as error:
            raise PluginError(f"plugin {name or plugin!r} cannot be registered: {error}") from error

    def offered(self, kind: type) -> Mapping[str, type]:
        """What all plugins together offer of one kind; a name offered twice is refused."""
        return {name: cls for name, (cls, _) in self.offered_by(kind).items()}

    def offered_by(self, kind: type) -> Mapping[str, tuple[type, str]]:
        """Each offer of one kind, with the name of the plugin that makes it."""
        noun, hook = OFFERS[kind]
        result: dict[str, tuple[type, str]] = {}
        for plugin, offer in self._answers(hook):
            for name, cls in offer.items():
                if name in result:
                    raise PluginError(f"{noun} {name!r} is offered by both {self._describe(result[name][1])} and {self._describe(plugin)}")
                result[name] = (cls, plugin)
        return result

    @cached_property
    def offers(self) -> Mapping[type, tuple[str, Mapping[str, type]]]:
        """All that can stand under `use` in a preset; asked for when first needed."""
        return _Offers(self)

    def preset_folders(self) -> list[Path]:
        """Folders of presets that plugins bring."""
        return [Path(folder) for _, folder in self._answers("zkit_presets")]

    def add_commands(self, cli: click.Group) -> None:
        """Let plugins add subcommands; none may replace an existing one."""
        for implementation in self.manager.hook.zkit_commands.get_hookimpls():
            before = dict(cli.commands)
            implementation.function(cli)
            for name in before:
                if cli.commands.get(name) is not before[name]:
                    raise PluginError(f"plugin {self._describe(implementation.plugin_name)} replaces the command `{name}`")

    def hooks_of(self, name: str) -> list[str]:
        """The hooks that a plugin implements."""
        return sorted(_hooks_of(self.manager.get_plugin(name)))

    def missing(self, noun: str) -> str:
        """A remark for errors: plugins that could have offered what is not there."""
        return "".join(f"\n  plugin {self._describe(name)} could offer more, but is broken: {cause}" for name, cause in self.broken.items() if noun)

    def _answers(self, hook: str) -> Iterator[tuple[str, Any]]:
        """Each plugin's answer to a hook without arguments; one that fails is noted as broken."""
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            try:
                yield implementation.plugin_name, implementation.function()
            except Exception as error:  # whatever a plugin raises is its own failure, not ours
                self.broken[implementation.plugin_name] = f"{hook} raised {type(error).__name__}: {error}"

    def _describe(self, name: str) -> str:
        return str(self.origins.get(name, name))

    def _discover(self) -> None:
        blocked = set(filter(None, os.environ.get("ZKIT_BLOCK_PLUGINS", "").split(",")))
        for entry in sorted(set(entry_points(group=NAME)), key=lambda entry: entry.name):
            origin = _origin(entry)
            known = self.origins.get(entry.name)
            if known is not None and known != origin:
                raise PluginError(f"two plugins are named {entry.name!r}: {known} and {origin}; uninstall one")
            if known is None and entry.name not in blocked:
                self.origins[entry.name] = origin
                self._load(entry)

    def _load(self, entry: EntryPoint) -> None:
        try:
            plugin = entry.load()
        except Exception as error:  # a broken plugin must not take the others down
            self.broken[entry.name] = f"import failed: {type(error).__name__}: {error}"
            return
        self.add(plugin, entry.name)


class _Offers(Mapping[type, tuple[str, Mapping[str, type]]]):
    """The offers of each kind, asked for when first needed: asking imports torch."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._asked: dict[type, tuple[str, Mapping[str, type]]] = {}

    def __getitem__(self, kind: type) -> tuple[str, Mapping[str, type]]:
        if kind not in self._asked:
            self._asked[kind] = (OFFERS[kind][0], self._plugins.offered(kind))
        return self._asked[kind]

    def __iter__(self) -> Iterator[type]:
        return iter(OFFERS)

    def __len__(self) -> int:
        return len(OFFERS)


def _origin(entry: EntryPoint) -> Origin:
    distribution = entry.dist
    name, version = (distribution.name, distribution.version) if distribution else ("?", "?")
    return Origin(entry.name, name, version, entry.value)


def _hook_names() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("zkit_")]


def _hooks_of(plugin: object) -> list[str]:
    """Attributes marked with `hookimpl`, known to the core or not."""
    marked = (name for name in dir(plugin) if hasattr(getattr(plugin, name, None), f"{NAME}_impl"))
    return list(marked)

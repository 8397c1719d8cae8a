"""Finding plugins, and asking them what they offer."""

from __future__ import annotations

import dataclasses
import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import pluggy

from zephyr_kit import NAME, ZkitError, hookspecs, protocols
from zephyr_kit.config import Offered, Offers, suggest
from zephyr_kit.origin import Origin, origin_of

if TYPE_CHECKING:
    import click

OFFERS: Mapping[type, tuple[str, str]] = {
    protocols.Objective: ("objective", "zkit_objectives"),
    protocols.DataSource: ("data source", "zkit_data_sources"),
    protocols.Backend: ("backend", "zkit_backends"),
    protocols.Attention: ("attention", "zkit_attentions"),
    protocols.OptimizerFactory: ("optimizer", "zkit_optimizers"),
    protocols.Filter: ("filter", "zkit_filters"),
    protocols.Completer: ("completer", "zkit_completers"),
    protocols.Judge: ("judge", "zkit_judges"),
    protocols.Suite: ("suite", "zkit_suites"),
    protocols.Launcher: ("launcher", "zkit_launchers"),
    protocols.Tracker: ("tracker", "zkit_trackers"),
}
"""For each protocol: what its offers are called, and the hook that offers them."""
BLOCK = "ZKIT_BLOCK_PLUGINS"
"""Environment variable: names of plugins, with commas between them, that are not loaded."""
ONLY_OURS = "ZKIT_NO_THIRD_PARTY"
"""Environment variable: set, no plugin of another distribution is loaded, here or in a process that is started here."""


class PluginError(ZkitError):
    """Two plugins disagree, or one is written wrongly."""


class Plugins:
    """A typed face over pluggy's manager."""

    def __init__(self, *extra: object, discover: bool = True) -> None:
        self.manager = pluggy.PluginManager(NAME)
        self.manager.add_hookspecs(hookspecs)
        self.origins: dict[str, Origin] = {}
        self.blocked: set[str] = set()
        self.took: dict[str, float] = {}
        """Seconds that each plugin's import took."""
        self._faults: dict[tuple[str, str], str] = {}
        if discover:
            self._discover()
        for plugin in extra:
            self.add(plugin)

    def add(self, plugin: object, name: str | None = None) -> None:
        """Register a plugin object; refuse one that is written wrongly."""
        told = self.describe(name) if name else repr(plugin)
        for problem in _problems(plugin):
            raise PluginError(f"plugin {told} {problem}{f' (to go without it: {BLOCK}={name})' if name in self.origins else ''}")
        try:
            self.manager.register(plugin, name)
        except (ValueError, pluggy.PluginValidationError) as error:
            raise PluginError(f"plugin {told} cannot be registered: {error}") from error

    @cached_property
    def offers(self) -> Offers:
        """All that can stand under `use` in a preset; asked for when first needed."""
        return _Asked(self)

    def offered(self, kind: type) -> Mapping[str, type]:
        """What all plugins together offer of one kind; a name offered twice is refused."""
        return {name: cls for name, (cls, _) in self.offered_by(kind).items()}

    def offered_by(self, kind: type) -> Mapping[str, tuple[type, str]]:
        """Each offer of one kind, with the name of the plugin that makes it."""
        noun, hook = OFFERS[kind]
        result: dict[str, tuple[type, str]] = {}
        for plugin, offer in self._answers(hook, _check_offer):
            for name, cls in offer.items():
                if name in result:
                    both = f"{self.describe(result[name][1])} and {self.describe(plugin)}"
                    raise PluginError(f"{noun} {name!r} is offered by both {both}; {_way_out(plugin)}")
                result[name] = (cls, plugin)
        return result

    def preset_folders(self) -> list[Path]:
        """Folders of presets that plugins bring."""
        return [Path(folder) for _, folder in self._answers("zkit_presets", _check_folder)]

    def add_commands(self, cli: click.Group) -> None:
        """Let plugins add subcommands; none may replace another's."""
        owners = dict.fromkeys(cli.commands, "zephyr-kit itself")
        for implementation in self.manager.hook.zkit_commands.get_hookimpls():
            name, before = implementation.plugin_name, dict(cli.commands)
            with self._blaming(name, "zkit_commands"):
                implementation.function(*[cli for _ in implementation.argnames])
            for command in cli.commands:
                if command in before and cli.commands[command] is not before[command]:
                    both = f"{owners[command]} and {self.describe(name)}"
                    raise PluginError(f"command `{command}` is offered by both {both}; {_way_out(name)}")
                owners.setdefault(command, self.describe(name))

    def tell(self, hook: str, **facts: Any) -> list[str]:
        """Tell observers; one that raises is told of once, by name, and stops nothing."""
        complaints = []
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            name, known = implementation.plugin_name, dict(self._faults)
            with self._blaming(name, hook):
                implementation.function(*[facts[argument] for argument in implementation.argnames])
            if (name, hook) in self._faults and (name, hook) not in known:
                complaints.append(f"plugin {self.describe(name)} is broken: {self._faults[name, hook]}; training goes on")
        return complaints

    def third_parties(self) -> list[Origin]:
        """The plugins that are loaded and are not ours."""
        return [origin for name, origin in self.origins.items() if name not in self.blocked and not origin.is_ours]

    def answerers(self, hook: str) -> list[str]:
        """The plugins that implement a hook, in the order in which they are asked."""
        return [one.plugin_name for one in reversed(getattr(self.manager.hook, hook).get_hookimpls())]

    def hooks_of(self, name: str) -> list[str]:
        """The hooks that a plugin implements."""
        return sorted(_hooks_of(self.manager.get_plugin(name)))

    def broken(self, name: str) -> list[str]:
        """What is wrong with a plugin, as far as it has been asked for anything; empty if nothing."""
        return [cause for (plugin, _), cause in self._faults.items() if plugin == name]

    def remark(self, hook: str) -> str:
        """Lines for an error about something that no plugin offers: who might have, but for what is wrong with it."""
        faults = [(name, f"is broken: {cause}") for (name, where), cause in self._faults.items() if where in ("", hook)]
        blocked = [(name, f"is blocked by {self.blocker(name)}") for name in sorted(self.blocked)]
        return "".join(f"\n  plugin {self.describe(name)} {problem}" for name, problem in (*faults, *blocked))

    def blocker(self, name: str) -> str:
        """What keeps a plugin from being loaded."""
        return BLOCK if name in _blocked() else ONLY_OURS

    def describe(self, name: str) -> str:
        """A plugin's name, with its distribution and version."""
        return str(self.origins.get(name, name))

    def _answers(self, hook: str, check: Callable[[Any], None]) -> list[tuple[str, Any]]:
        """Each plugin's answer to a hook without arguments; one that fails is noted as broken."""
        answers: list[tuple[str, Any]] = []
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            with self._blaming(implementation.plugin_name, hook):
                answer = implementation.function()
                check(answer)
                answers.append((implementation.plugin_name, answer))
        return answers

    @contextmanager
    def _blaming(self, plugin: str, hook: str = "") -> Iterator[None]:
        """Note whatever a plugin raises as its own failure, which takes nobody else down."""
        try:
            yield
        except (Exception, SystemExit) as error:
            did = f"{hook} raised" if hook else "import failed:"
            self._faults[plugin, hook] = f"{did} {type(error).__name__}: {error}"

    def _discover(self) -> None:
        blocked = _blocked()
        entries = sorted(entry_points(group=NAME), key=lambda entry: entry.name)
        for name in blocked - {entry.name for entry in entries}:
            raise PluginError(f"{BLOCK} names {name!r}, which is no plugin{suggest(name, (entry.name for entry in entries))}")
        for entry in self._without_third_parties(entries) if os.environ.get(ONLY_OURS) else entries:
            origin, known = origin_of(entry), self.origins.get(entry.name)
            if known is not None and known != origin and entry.name not in blocked:
                raise PluginError(f"two plugins are named {entry.name!r}: {known} and {origin}; {_way_out(entry.name)}")
            self.origins[entry.name] = origin
            if entry.name in blocked:
                self.blocked.add(entry.name)
            elif known is None:
                self._load(entry)

    def _without_third_parties(self, entries: Sequence[EntryPoint]) -> list[EntryPoint]:
        """Ours; of the others nothing is imported, and they are named as blocked."""
        ours = [entry for entry in entries if origin_of(entry).is_ours]
        theirs = {entry.name: origin_of(entry) for entry in entries if entry not in ours and entry.name not in {one.name for one in ours}}
        self.origins.update(theirs)
        self.blocked.update(theirs)
        return ours

    def _load(self, entry: EntryPoint) -> None:
        loaded: list[object] = []
        began = time.perf_counter()
        with self._blaming(entry.name):
            loaded.append(entry.load())
        self.took[entry.name] = time.perf_counter() - began
        for plugin in loaded:
            self.add(plugin, entry.name)


class _Asked(Mapping[type, Offered]):
    """The offers of each kind, asked for when first needed: asking imports torch."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._asked: dict[type, Offered] = {}

    def __getitem__(self, kind: type) -> Offered:
        if kind not in self._asked:
            noun, hook = OFFERS[kind]
            self._asked[kind] = Offered(noun, self._plugins.offered(kind), self._plugins.remark(hook))
        return self._asked[kind]

    def __iter__(self) -> Iterator[type]:
        return iter(OFFERS)

    def __len__(self) -> int:
        return len(OFFERS)


def _blocked() -> set[str]:
    return {name.strip() for name in os.environ.get(BLOCK, "").split(",")} - {""}


def _check_offer(answer: Any) -> None:
    """Whether names lead to frozen dataclasses whose annotations can be read."""
    if not isinstance(answer, Mapping):
        raise TypeError(f"its answer is {answer!r}, not a mapping from names to frozen dataclasses")
    for name, cls in answer.items():
        if not (isinstance(name, str) and isinstance(cls, type) and dataclasses.is_dataclass(cls) and _is_frozen(cls)):
            raise TypeError(f"its offer {name!r} is {cls!r}, not a frozen dataclass")
        try:
            get_type_hints(cls, include_extras=True)
        except NameError as error:
            raise TypeError(f"{error} in an annotation of {cls.__name__}; import it outside `if TYPE_CHECKING`") from error


def _is_frozen(cls: Any) -> bool:
    return bool(cls.__dataclass_params__.frozen)


def _check_folder(answer: Any) -> None:
    if not isinstance(answer, (str, Path)):
        raise TypeError(f"its answer is {answer!r}, not a path")
    if not Path(answer).is_dir():
        raise NotADirectoryError(f"there is no folder {answer}")


def _problems(plugin: object) -> Iterator[str]:
    """What pluggy would pass over in silence."""
    known = hook_names()
    marked = _hooks_of(plugin)
    for name in marked:
        if name not in known:
            yield f"implements `{name}`, which is no hook{suggest(name, known)}"
        keywords = [p.name for p in inspect.signature(getattr(plugin, name)).parameters.values() if p.kind is p.KEYWORD_ONLY]
        if keywords:
            yield f"takes `{keywords[0]}` of `{name}` as a keyword only, which hooks do not pass: remove the `*`"
    for name in known:
        if name not in marked and inspect.isroutine(getattr(plugin, name, None)):
            yield f"defines `{name}` without the mark @hookimpl, so nothing would call it"


def _hooks_of(plugin: object) -> list[str]:
    """Attributes marked with `hookimpl`, known to the core or not."""
    return [name for name in dir(plugin) if hasattr(getattr(plugin, name, None), f"{NAME}_impl")]


def hook_names() -> list[str]:
    """Every hook that there is."""
    return [name for name in vars(hookspecs) if name.startswith("zkit_")]


def _way_out(plugin: str) -> str:
    return f"uninstall one, or set {BLOCK}={plugin}"

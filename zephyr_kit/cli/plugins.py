"""`zkit plugins`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import click

from zephyr_kit.plugins import OFFERS, Plugins, hook_names


@click.command()
@click.option("--hooks", is_flag=True, help="By hook: who answers it, and how long finding and asking them took.")
@click.pass_obj
def plugins(plugins: Plugins, hooks: bool) -> None:  # noqa: FBT001  click's way
    """List plugins, and what each offers."""
    if hooks:
        _by_hook(plugins)
        return
    offered = _offered(plugins)
    for name, origin in plugins.origins.items():
        click.echo(f"{name}  ({origin.distribution} {origin.version}, module {origin.module})")
        if name in plugins.blocked:
            click.echo(f"    blocked by {plugins.blocker(name)}")
            continue
        for line in (*(f"broken: {cause}" for cause in plugins.broken(name)), *offered.get(name, ())):
            click.echo(f"    {line}")


def _offered(plugins: Plugins) -> dict[str, list[str]]:
    """What each plugin offers, and its other hooks; asking also finds what is broken."""
    lines: dict[str, list[str]] = {}
    for kind, (noun, _) in OFFERS.items():
        for name, (cls, plugin) in plugins.offered_by(kind).items():
            lines.setdefault(plugin, []).extend((f"{noun} {name}", *_laws_broken(cls)))
    plugins.preset_folders()
    offers = {hook for _, hook in OFFERS.values()}
    for plugin in plugins.origins:
        others = [hook for hook in plugins.hooks_of(plugin) if hook not in offers]
        lines.setdefault(plugin, []).extend(f"hook {hook}" for hook in others)
    return lines


def _laws_broken(offer: type) -> Iterator[str]:
    """What an offer says of itself; where it depends on its keys, only its objects know."""
    from zephyr_kit.protocols import broken_laws

    yield from (f"    breaks `{law}`: {reason}" for law, reason in broken_laws(offer).items())


def _by_hook(plugins: Plugins) -> None:
    slowest = max(plugins.took, key=lambda name: plugins.took[name], default=None)
    told = f"; the slowest was {slowest}, {_milliseconds(plugins.took[slowest])}" if slowest else ""
    click.echo(f"{len(plugins.took)} plugins found and imported in {_milliseconds(sum(plugins.took.values()))}{told}")
    click.echo("Asked one after another, each with whatever it is the first to import:")
    asked: dict[str, Callable[[], object]] = {hook: lambda kind=kind: plugins.offered_by(kind) for kind, (_, hook) in OFFERS.items()}  # type: ignore[misc]
    asked["zkit_presets"] = plugins.preset_folders
    width = max(map(len, hook_names()))
    for hook in hook_names():
        began = time.perf_counter()
        asked.get(hook, lambda: None)()
        took = f"  {_milliseconds(time.perf_counter() - began):>10}" if hook in asked else " " * 12
        click.echo(f"{hook:{width}}{took}  {', '.join(plugins.answerers(hook)) or 'nobody'}")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"

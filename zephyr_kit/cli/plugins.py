"""`zkit plugins`."""

from __future__ import annotations

import click

from zephyr_kit.plugins import OFFERS, Plugins


@click.command()
@click.pass_obj
def plugins(plugins: Plugins) -> None:
    """List plugins, and what each offers."""
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
        for name, (_, plugin) in plugins.offered_by(kind).items():
            lines.setdefault(plugin, []).append(f"{noun} {name}")
    plugins.preset_folders()
    offers = {hook for _, hook in OFFERS.values()}
    for plugin in plugins.origins:
        others = [hook for hook in plugins.hooks_of(plugin) if hook not in offers]
        lines.setdefault(plugin, []).extend(f"hook {hook}" for hook in others)
    return lines

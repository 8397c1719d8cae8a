"""`zkit plugins`."""

from __future__ import annotations

import click

from zephyr_kit.plugins import OFFERS, Plugins


@click.command()
@click.pass_obj
def plugins(plugins: Plugins) -> None:
    """List plugins: name, distribution and version, and what each offers."""
    offered: dict[str, list[str]] = {name: [] for name in plugins.origins}
    for kind, (noun, _) in OFFERS.items():
        for name, (_, plugin) in plugins.offered_by(kind).items():
            offered.setdefault(plugin, []).append(f"{noun} {name}")
    for name, origin in plugins.origins.items():
        click.echo(f"{name}  ({origin.distribution} {origin.version}, module {origin.module})")
        if name in plugins.broken:
            click.echo(f"    broken: {plugins.broken[name]}")
            continue
        for line in offered[name]:
            click.echo(f"    {line}")
        for hook in plugins.hooks_of(name):
            if hook not in [hook_of_kind for _, hook_of_kind in OFFERS.values()]:
                click.echo(f"    hook {hook}")

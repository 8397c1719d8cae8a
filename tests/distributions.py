"""Distributions that are not really installed: a module and its metadata in a folder."""

from __future__ import annotations

import textwrap
from pathlib import Path


def write_distribution(folder: Path, name: str, entries: dict[str, str], *, code: str | None = None, version: str = "1.2") -> None:
    """`entries` are plugin names and their modules; `code` is the text of the first module."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    lines = [f"{plugin} = {target}" for plugin, target in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[zephyr_kit]", *lines, ""]), "utf-8")
    if code is not None:
        (folder / f"{next(iter(entries.values()))}.py").write_text(textwrap.dedent(code), "utf-8")


HINGE = """
    from dataclasses import dataclass
    from zephyr_kit import hookimpl

    @dataclass(frozen=True)
    class Hinge:
        margin: float = 1.0

    @hookimpl
    def zkit_objectives():
        return {"toy_hinge": Hinge}
"""

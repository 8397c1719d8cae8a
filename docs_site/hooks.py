"""mkdocs' hooks: generated pages, a navigation without gaps, and links that leave `docs/`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from commands import commands_page
from contract import objectives_page
from equations import Equations
from keys import offers_page, preset_page

ROOT = Path(__file__).parents[1]
OUTSIDE = "repository/"
"""Where the site has files of the repository that pages link to."""
GENERATED: Mapping[str, Callable[[], str]] = {
    "reference/commands.md": commands_page,
    "reference/preset.md": preset_page,
    "reference/offers.md": offers_page,
    "reference/objective.md": objectives_page,
}
WIDE = ("objectives.md", "how-to/migrate.md")
"""Pages with broad tables, which take the place of a table of contents too."""
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")


def on_config(config: Any) -> Any:
    """Leave out of the navigation what is not there (yet), and add what it does not name, under `More`; set equations."""
    config["markdown_extensions"].append(Equations())
    docs = Path(config["docs_dir"])
    config["nav"], named = navigation(config["nav"], docs)
    others = sorted(page for page in pages(docs) if page not in named)
    if others:
        config["nav"].append({"More": others})
    return config


def navigation(entries: list[Any], docs: Path) -> tuple[list[Any], set[str]]:
    """The entries whose pages there are, and these pages; an entry that ends with `/` stands for a folder's."""
    kept, named = [], set()
    for entry in entries:
        title, target = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(target, list):
            inner, inside = navigation(target, docs)
            named |= inside
            kept += [{title: inner}] if inner else []
            continue
        found = sorted(f"{target}{page.name}" for page in (docs / target).glob("*.md")) if target.endswith("/") else [target]
        found = [page for page in found if (docs / page).is_file() or page in GENERATED or page.startswith(OUTSIDE)]
        named.update(found)
        kept += [{title: page} if title else page for page in found]
    return kept, named


def pages(docs: Path) -> Iterator[str]:
    """Every page that lies in the folder."""
    return (page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and files of the repository that pages link to."""
    from mkdocs.structure.files import File

    for uri, make in GENERATED.items():
        files.append(File.generated(config, uri, content=make()))
    waiting = [f"docs/{page}" for page in pages(ROOT / "docs")] + ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
    seen: set[str] = set()
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        if not place.startswith("docs/"):
            files.append(File.generated(config, OUTSIDE + place, abs_src_path=str(ROOT / place)))
        if place.endswith(".md"):
            waiting += targets(place)
    return files


def targets(place: str) -> list[str]:
    """The files of the repository, outside `docs/`, that a page links to."""
    found = (aim(link, place) for link in LINK.findall((ROOT / place).read_text("utf-8")))
    return [target for target in found if target and not target.startswith("docs/")]


def aim(link: str, place: str) -> str:
    """The file of the repository that a link means, or nothing."""
    if "://" in link or link.startswith("mailto:"):
        return ""
    target = os.path.normpath(f"{os.path.dirname(place)}/{link}")
    return target if (ROOT / target).is_file() else ""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave `docs/` at the site's copies, and give wide pages room."""
    uri: str = page.file.src_uri
    if uri in WIDE:
        page.meta["hide"] = ["toc"]
    if uri in GENERATED:
        return markdown
    place = uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else f"docs/{uri}"

    def moved(match: re.Match[str]) -> str:
        target = aim(match[1], place)
        if not target:
            return match[1]
        inside = target.removeprefix("docs/") if target.startswith("docs/") else OUTSIDE + target
        return os.path.relpath(inside, os.path.dirname(uri) or ".")

    return LINK.sub(moved, markdown)

"""The pages of every key of a preset, and of every offer of the built-in plugins, from their dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Lt

from zephyr_kit.config import USE, Offers, plain
from zephyr_kit.plugins import OFFERS, Plugins
from zephyr_kit.preset import Header
from zephyr_kit.protocols import INLINE
from zephyr_kit.schema import field_docs
from zephyr_kit.stages import DOES, KINDS

PRESET, OFFERED = "preset.md", "offers.md"
ABOUT = """\
Made from the dataclasses that a preset's tables are turned into. A key that is not here is an error. What is **needed** must be given,
and what has `none` for its default may be left out. `zkit schema` prints the same as a JSON Schema for an editor."""
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}


def preset_page() -> str:
    """Markdown: the tables of a preset, key by key."""
    offers = Plugins().offers
    parts = [
        "# The keys of a preset",
        ABOUT,
        *_section("A preset", Header, offers, "The keys outside all tables; besides, `[model]` and at least one `[stages.NAME]`."),
        "## `[model]`\n\nOne of the [backends](offers.md#backends). A stage may set keys of it for itself, as `model.KEY`.",
    ]
    for key, kind in KINDS.items():
        parts += _section(f"A stage with `{key}`", kind, offers, f"The key `{key}` says what it does: {DOES[key]}.")
    for table in _tables([Header, *KINDS.values()], offers):
        parts += _section(f"{table.__name__}", table, offers)
    return "\n\n".join(parts) + "\n"


def offers_page() -> str:
    """Markdown: what can stand under `use`, and the other keys of that table."""
    plugins = Plugins()
    parts = ["# What can stand under `use`", "Each is offered by a plugin; `zkit plugins` lists those of yours too."]
    for kind, (noun, hook) in OFFERS.items():
        parts.append(f"## {noun.capitalize()}s\n\nFrom the hook [`{hook}`](hooks.md).")
        for name, (offer, plugin) in sorted(plugins.offered_by(kind).items()):
            parts += _section(f"`{name}`", offer, plugins.offers, f"Of the plugin `{plugin}`.", level=3)
    inner = [offer for kind in OFFERS for offer in plugins.offered(kind).values()]
    parts.append("## Tables inside them")
    for table in _tables(inner, plugins.offers):
        parts += _section(table.__name__, table, plugins.offers, level=3)
    return "\n\n".join(parts) + "\n"


def _section(title: str, table: type, offers: Offers, remark: str = "", *, level: int = 2) -> list[str]:
    about = _text(inspect.getdoc(table) or "")
    rows = list(_rows(table, offers))
    keys = ["| key | takes | default | |\n|---|---|---|---|\n" + "\n".join(rows)] if rows else ["It has no keys."]
    return [f"{'#' * level} {title}", *filter(None, (about, remark)), *keys]


def _rows(table: type, offers: Offers) -> Iterator[str]:
    hints, docs = get_type_hints(table, include_extras=True), field_docs(table)
    for f in dataclasses.fields(table):
        if not f.init:
            continue
        if INLINE in f.metadata:
            yield f"| `use`, … | {_takes(hints[f.name], offers)} | | the table of what is named, whose keys stand here too |"
        else:
            yield f"| `{f.name}` | {_takes(hints[f.name], offers)} | {_default(f)} | {_text(docs.get(f.name, ''))} |"


def _tables(holders: list[type], offers: Offers) -> list[type]:
    """The plain dataclasses inside these, each once, in the order in which they are met."""
    found: dict[type, None] = {}
    waiting = list(holders)
    while waiting:
        for hint in get_type_hints(waiting.pop(0), include_extras=True).values():
            for part in _parts(hint):
                plain_table = isinstance(part, type) and dataclasses.is_dataclass(part) and not any(part is kind for kind in offers)
                if plain_table and part not in (*found, *holders):
                    found[part] = None
                    waiting.append(part)
    return list(found)


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _parts(part)


def _takes(hint: Any, offers: Offers) -> str:
    """A type in words."""
    if get_args(hint):
        return _composed(get_origin(hint), get_args(hint), offers)
    if hint in OFFERS:
        noun = OFFERS[hint][0]
        return f"[{noun}]({OFFERED}#{noun.replace(' ', '-')}s)"
    if dataclasses.is_dataclass(hint):
        return f"table: [{hint.__name__}](#{hint.__name__.lower()})"
    return WORDS.get(hint, "text")


def _composed(origin: Any, args: tuple[Any, ...], offers: Offers) -> str:
    if origin is Annotated:
        return _takes(args[0], offers) + "".join(map(_limit, args[1:]))
    if origin is Literal:
        return ", ".join(f"`{json.dumps(each)}`" for each in args)
    if origin in (tuple, list):
        return f"list of {_takes(args[0], offers).replace('table:', 'tables:')}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"table of {_takes(args[1], offers)}"
    return " or ".join(_takes(each, offers) for each in args if each is not NoneType)


def _limit(limit: Any) -> str:
    if isinstance(limit, Interval):
        bounds = {"at least": limit.ge, "above": limit.gt, "at most": limit.le, "below": limit.lt}
        return "".join(f", {word} {value}" for word, value in bounds.items() if value is not None)
    named = {Gt: ("above", "gt"), Ge: ("at least", "ge"), Lt: ("below", "lt")}.get(type(limit))
    return f", {named[0]} {getattr(limit, named[1])}" if named else ""


def _default(f: dataclasses.Field[Any]) -> str:
    if USE in f.metadata:
        return f"`{json.dumps(f.metadata[USE])}`"
    if f.default_factory is not dataclasses.MISSING:
        made = plain(f.default_factory())
        return "none" if made in ({}, []) else "its defaults"
    if f.default is dataclasses.MISSING:
        return "**needed**"
    return "none" if f.default is None else f"`{json.dumps(plain(f.default))}`"


def _text(text: str) -> str:
    """In one line, fit for a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").strip()

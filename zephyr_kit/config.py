"""Tables turned into frozen dataclasses, strictly.

The dataclass is the schema: its fields are the keys of the table. A field whose annotation
is a protocol (`Objective`, say) is a table that names a plugin's offer under `use`. Values
are checked by pydantic, in strict mode.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from zephyr_kit import ZkitError

USE = "use"
Offers = Mapping[Any, tuple[str, Mapping[str, type]]]
"""For each protocol: what its offers are called, and the offers by name."""


class PresetError(ZkitError):
    """A preset that cannot be understood; the message names file, table, key and value."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One resolved value, and where it came from."""

    path: str
    value: Any
    origin: str


def default_use(name: str) -> Any:
    """Make a field that takes the offer `name` when the table does not mention it."""
    return field(metadata={USE: name})


def inline() -> Any:
    """Make a field whose offer takes the keys of the table that are not other fields'."""
    return field(metadata={"inline": True})


@dataclass(frozen=True)
class Builder:
    """Builds dataclasses from tables, and remembers every value it settled."""

    offers: Offers
    file: str
    origins: Mapping[str, str] = field(default_factory=dict)
    """Paths whose value does not come from the file itself."""
    settings: list[Setting] = field(default_factory=list)

    def build(self, cls: type, table: Mapping[str, Any], where: str) -> Any:
        """Make `cls` from a table; refuse unknown and missing keys, and wrong types."""
        hints = get_type_hints(cls, include_extras=True)
        known = {f.name: f for f in dataclasses.fields(cls) if f.init}
        inlined = next((name for name, f in known.items() if "inline" in f.metadata), None)
        given = dict(table)
        if inlined is not None:
            given = _split(given, known, inlined)
        self._refuse_unknown(given, known, where)
        values = {}
        for name, f in known.items():
            path = where if name == inlined else _join(where, name)
            if name in given:
                values[name] = self.convert(hints[name], given[name], path)
            elif USE in f.metadata:
                values[name] = self.convert(hints[name], f.metadata[USE], path)
            elif f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING:
                self._settle_default(f, path, cls)
            else:
                raise self.error(where, f"needs `{name}`")
        try:
            return cls(**values)
        except ValueError as error:
            raise self.error(where, str(error)) from error

    def convert(self, kind: Any, value: Any, path: str) -> Any:
        """Check one value against an annotation, and make it of that type."""
        kind = without_none(kind)
        if _is_offered(kind, self.offers):
            return self._choose(kind, value, path)
        if dataclasses.is_dataclass(kind):
            return self.build(cast("type", kind), self._table(value, path), path)
        item = item_of_tuple(kind)
        if item is not None and (dataclasses.is_dataclass(item) or _is_offered(item, self.offers)):
            if not isinstance(value, list):
                raise self._wrong(path, value, "a list of tables")
            return tuple(self.convert(item, element, f"{path}[{i}]") for i, element in enumerate(value))
        checked = self._check(kind, value, path)
        self.settings.append(Setting(path, value, self._origin(path)))
        return checked

    def error(self, where: str, message: str) -> PresetError:
        """An error that names the file and the table."""
        return PresetError(f"{self.file}: [{where}] {message}" if where else f"{self.file}: {message}")

    def _choose(self, kind: Any, value: Any, path: str) -> Any:
        name_of_kind, offered = self.offers[kind]
        table = {USE: value} if isinstance(value, str) else dict(self._table(value, path))
        name = table.pop(USE, None)
        if name is None:
            raise self.error(path, f'needs `use = "…"`, the name of {_a(name_of_kind)} (offered: {", ".join(sorted(offered))})')
        if name not in offered:
            raise self.error(path, f"use = {name!r}: no plugin offers such {_a(name_of_kind)}{suggest(str(name), offered)}")
        self.settings.append(Setting(_join(path, USE), name, self._origin(path)))
        return self.build(offered[name], table, path)

    def _check(self, kind: Any, value: Any, path: str) -> Any:
        from pydantic import TypeAdapter, ValidationError

        try:
            # Strict JSON takes a list for a tuple and a text for a path, and nothing else for anything else.
            return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            hint = suggest(value, get_args(kind)) if first["type"] == "literal_error" and isinstance(value, str) else ""
            raise self._wrong(path + "".join(f"[{part}]" for part in first["loc"]), value, first["msg"] + hint) from error
        except TypeError as error:
            raise self._wrong(path, value, "a text, a number, true or false, a list or a table") from error

    def _table(self, value: Any, path: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(path, value, "a table")
        return value

    def _wrong(self, path: str, value: Any, what: str) -> PresetError:
        where, _, key = path.rpartition(".")
        said = what[0].lower() + what[1:]
        return self.error(where, f"`{key}` = {_as_toml(value)}: {said if said.startswith('input') else 'should be ' + said}")

    def _refuse_unknown(self, given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
        for key in given:
            if key not in known:
                raise self.error(where, f"does not know the key `{key}` (= {_as_toml(given[key])}){suggest(key, known)}")

    def _settle_default(self, f: dataclasses.Field[Any], path: str, cls: type) -> None:
        value = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        self.settings.append(Setting(path, plain(value), f"default of {cls.__module__.partition('.')[0]}"))

    def _origin(self, path: str) -> str:
        best = max((known for known in self.origins if path == known or path.startswith((f"{known}.", f"{known}["))), key=len, default=None)
        return self.origins[best] if best is not None else self.file


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or what there is to choose from."""
    names = sorted(str(each) for each in known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; there is {', '.join(names)}" if names else "; there is none"


def plain(value: Any) -> Any:
    """A value as TOML and JSON know it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [plain(element) for element in value]
    if isinstance(value, Mapping):
        return {str(key): plain(element) for key, element in value.items()}
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _split(table: dict[str, Any], known: Mapping[str, Any], inlined: str) -> dict[str, Any]:
    own = {key: value for key, value in table.items() if key in known and key != inlined}
    return {**own, inlined: {key: value for key, value in table.items() if key not in own}}


def without_none(kind: Any) -> Any:
    """`X | None` as `X`: TOML has no null, so a key that is there has a value."""
    if get_origin(kind) in (Union, types.UnionType):
        rest = [part for part in get_args(kind) if part is not types.NoneType]
        return rest[0] if len(rest) == 1 else kind
    return kind


def item_of_tuple(kind: Any) -> Any:
    args = get_args(kind)
    return args[0] if get_origin(kind) is tuple and len(args) == 2 and args[1] is Ellipsis else None


def _is_offered(kind: Any, offers: Offers) -> bool:
    return isinstance(kind, type) and kind in offers


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _as_toml(value: Any) -> str:
    text = json.dumps(plain(value), ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

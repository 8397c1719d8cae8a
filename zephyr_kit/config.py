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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from zephyr_kit import ZkitError
from zephyr_kit.exits import Exit
from zephyr_kit.protocols import INLINE

USE = "use"


@dataclass(frozen=True, slots=True)
class Offered:
    """What can stand under `use` where a protocol is asked for."""

    noun: str
    by_name: Mapping[str, type]
    remark: str = ""
    """What to add when a name is not among them: whose offers are missing, and why."""


Offers = Mapping[Any, Offered]
"""For each protocol, what plugins offer."""


WORDS: Mapping[str, str] = {
    "a valid array": "a list",
    "a valid string": "a text",
    "an object": "a table",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
}
"""pydantic's words, and ours."""


class PresetError(ZkitError):
    """A preset that cannot be understood; the message names file, table, key and value."""

    exit = Exit.NOT_UNDERSTOOD


@dataclass(frozen=True, slots=True)
class Setting:
    """One resolved value, and where it came from."""

    path: str
    value: Any
    origin: str


def default_use(name: str) -> Any:
    """Make a field that takes the offer `name` when the table does not mention it."""
    return field(metadata={USE: name})


@dataclass(frozen=True)
class Builder:
    """Builds dataclasses from tables, and remembers every value it settled."""

    offers: Offers
    file: str
    origins: Mapping[str, str] = field(default_factory=dict)
    """Paths whose value does not come from the file itself."""
    settings: list[Setting] = field(default_factory=list)

    def build(self, cls: type, table: Mapping[str, Any], where: str, *, also: Iterable[str] = ()) -> Any:
        """Make `cls` from a table; refuse unknown and missing keys (`also` are known, but elsewhere), and wrong types."""
        hints = get_type_hints(cls, include_extras=True)
        known = {f.name: f for f in dataclasses.fields(cls) if f.init}
        inlined = next((name for name, f in known.items() if INLINE in f.metadata), None)
        given = dict(table)
        if inlined is not None:
            given = _split(given, known, inlined)
        self.refuse_unknown(given, [*known, *also], where)
        values = {}
        for name, f in known.items():
            path = _join(where, name)
            if name == inlined:
                values[name] = self._choose(hints[name], given[name], where, also=[key for key in known if key != inlined])
            elif name in given:
                values[name] = self.convert(hints[name], given[name], path)
            elif USE in f.metadata:
                values[name] = self._with_origin(path, _default_of(cls)).convert(hints[name], f.metadata[USE], path)
            elif f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING:
                self._settle_default(f, path, cls)
            else:
                raise self.error(where, f"needs `{name}`")
        try:
            return cls(**values)
        except (ValueError, ZkitError) as error:
            raise self.error(where, str(error), path=where) from error

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
                raise self._wrong(path, value, "should be a list of tables, as in [{ … }]")
            return tuple(self.convert(item, element, f"{path}[{i}]") for i, element in enumerate(value))
        checked = self._check(kind, value, path)
        self.settings.append(Setting(path, value, self._origin(path)))
        return checked

    def refuse_unknown(self, given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
        """Refuse keys that are not known."""
        names = list(known)
        for key in given:
            if key not in names:
                message = f"does not know the key `{key}` (= {_as_toml(given[key])}){suggest(key, names)}"
                raise self.error(where, message, path=_join(where, key))

    def error(self, where: str, message: str, *, path: str = "") -> PresetError:
        """An error that names the file and the table, and where the value at `path` comes from if not from there."""
        table = f"[{where}] " if where else ""
        return PresetError(f"{self.file}: {table}{message}{self._not_from_file(path)}")

    def _choose(self, kind: Any, value: Any, path: str, *, also: Iterable[str] = ()) -> Any:
        offered = self.offers[kind]
        table = {USE: value} if isinstance(value, str) else dict(self._table(value, path))
        if USE not in table:
            near = difflib.get_close_matches(USE, table, n=1)
            choice = f"; did you mean `{USE}` by `{near[0]}`?" if near else suggest("", offered.by_name)
            raise self.error(path, f'needs `{USE} = "…"`, the name of {_a(offered.noun)}{choice}{offered.remark}')
        name = table.pop(USE)
        if not isinstance(name, str):
            raise self._wrong(_join(path, USE), name, f"should be the name of {_a(offered.noun)}")
        if name not in offered.by_name:
            message = f'`{USE}` = "{name}": no plugin offers such {_a(offered.noun)}{suggest(name, offered.by_name)}'
            raise self.error(path, f"{message}{self._not_from_file(_join(path, USE))}{offered.remark}")
        self.settings.append(Setting(_join(path, USE), name, self._origin(_join(path, USE))))
        return self.build(offered.by_name[name], table, path, also=also)

    def _check(self, kind: Any, value: Any, path: str) -> Any:
        import pydantic

        try:
            # Strict JSON takes a list for a tuple and a text for a path, and nothing else for anything else.
            adapter = pydantic.TypeAdapter(kind, config=pydantic.ConfigDict(allow_inf_nan=False))
            return adapter.validate_json(json.dumps(value), strict=True)
        except pydantic.ValidationError as error:
            parts = get_args(kind)
            if _is_union(kind) and isinstance(value, list) and any(get_origin(part) is tuple for part in parts):
                # A list can only have been meant for the one that takes lists.
                return self._check(next(part for part in parts if get_origin(part) is tuple), value, path)
            raise self._invalid(kind, value, path, error.errors()) from error
        except TypeError as error:
            raise self._wrong(path, value, "should be a text, a number, true or false, a list or a table") from error

    def _invalid(self, kind: Any, value: Any, path: str, errors: Sequence[Any]) -> PresetError:
        """What pydantic found, in the words of TOML."""
        names = [name for part in (get_args(kind) if _is_union(kind) else (kind,)) for name in _literals(part)]
        near = did_you_mean(value, names) if isinstance(value, str) else ""
        if _is_union(kind):
            expected = " or ".join(dict.fromkeys(_expected(error["msg"]).removeprefix("should be ") for error in errors))
            return self._wrong(path, value, f"should be {expected}{near}")
        first = errors[0]
        inside = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
        return self._wrong(path + inside, first["input"], _expected(first["msg"]) + near)

    def _table(self, value: Any, path: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(path, value, "should be a table")
        return value

    def _wrong(self, path: str, value: Any, what: str) -> PresetError:
        where, _, key = path.rpartition(".")
        return self.error(where, f"`{key}` = {_as_toml(value)}: {what}", path=path)

    def _settle_default(self, f: dataclasses.Field[Any], path: str, cls: type) -> None:
        value = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        self.settings.append(Setting(path, plain(value), _default_of(cls)))

    def _with_origin(self, path: str, origin: str) -> Builder:
        return dataclasses.replace(self, origins={**self.origins, path: origin})

    def _origin(self, path: str) -> str:
        best = max((known for known in self.origins if _within(path, known)), key=len, default=None)
        return self.origins[best] if best is not None else self.file

    def _not_from_file(self, path: str) -> str:
        """` (from the command line)` and the like; nothing when the value stands in the file."""
        if not path:
            return ""
        if self._origin(path) != self.file:
            return f" (from {self._origin(path)})"
        inside = sorted({origin for known, origin in self.origins.items() if _within(known, path)})
        return f" (partly from {' and '.join(inside)})" if inside else ""


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or what there is to choose from."""
    names = sorted(str(each) for each in known)
    return did_you_mean(name, names) or (f"; there is {', '.join(names)}" if names else "; there is none")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing when no name is near."""
    close = difflib.get_close_matches(name, [str(each) for each in known], n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


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
    if _is_union(kind):
        rest = [part for part in get_args(kind) if part is not types.NoneType]
        return rest[0] if len(rest) == 1 else kind
    return kind


def item_of_tuple(kind: Any) -> Any:
    """`X` of a `tuple[X, ...]`, else None."""
    args = get_args(kind)
    return args[0] if get_origin(kind) is tuple and len(args) == 2 and args[1] is Ellipsis else None


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _literals(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _expected(message: str) -> str:
    """A message of pydantic's, in the words of TOML."""
    said = message.replace("Input should be", "should be")
    for theirs, ours in WORDS.items():
        said = said.replace(theirs, ours)
    return said[0].lower() + said[1:]


def _is_offered(kind: Any, offers: Offers) -> bool:
    return isinstance(kind, type) and kind in offers


def _within(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}["))


def _default_of(cls: type) -> str:
    return f"default of {cls.__module__.partition('.')[0]}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _as_toml(value: Any) -> str:
    text = json.dumps(plain(value), ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

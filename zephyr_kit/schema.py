"""The JSON Schema of a preset, with all that the installed plugins offer."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any, cast, get_type_hints

from zephyr_kit.config import USE, Offers, item_of_tuple, plain, without_none
from zephyr_kit.preset import STAGE_NAME, Header
from zephyr_kit.protocols import INLINE, Backend
from zephyr_kit.stages import KINDS

JSON = dict[str, Any]


def preset_schema(offers: Offers) -> JSON:
    """Schema of the whole file; every offer stands once under `$defs`."""
    writer = _Writer(offers)
    header = writer.table(Header)
    override = {"description": "Keys of [model] that this stage sets for itself.", "anyOf": writer.parts(Backend)}
    stages = [writer.table(kind) for kind in KINDS.values()]
    stages[0]["properties"]["model"] = override
    named = {"propertyNames": {"pattern": f"^{STAGE_NAME}$"}, "additionalProperties": {"oneOf": stages}, "minProperties": 1}
    properties = {**header["properties"], "model": writer.value(Backend), "stages": {"type": "object", **named}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A zephyr-kit preset",
        **header,
        "properties": properties,
        "required": ["name", "model", "stages"],
        "$defs": writer.definitions,
    }


class _Writer:
    def __init__(self, offers: Offers) -> None:
        self.offers = offers
        self.definitions: dict[str, JSON] = {}

    def table(self, cls: type) -> JSON:
        """Schema of a dataclass."""
        hints, docs = get_type_hints(cls, include_extras=True), field_docs(cls)
        properties: JSON = {}
        required: list[str] = []
        inlined: list[Any] = []
        for f in dataclasses.fields(cls):
            if INLINE in f.metadata:
                inlined.append(hints[f.name])
                continue
            properties[f.name] = {**self.value(hints[f.name]), **_default(f), **({"description": docs[f.name]} if f.name in docs else {})}
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and USE not in f.metadata:
                required.append(f.name)
        own: JSON = {"type": "object", "description": inspect.getdoc(cls) or "", "properties": properties, "required": required}
        return self._with_offer(own, inlined[0]) if inlined else {**own, "additionalProperties": False}

    def parts(self, kind: type) -> list[JSON]:
        """Schemas of any selection of the keys of each offer of a kind."""
        return [{**self._offer(use, cls), "required": []} for use, cls in self.offers[kind].by_name.items()]

    def value(self, kind: Any) -> JSON:
        """Schema of what may stand behind a key."""
        kind = without_none(kind)
        if isinstance(kind, type) and kind in self.offers:
            return {"$ref": self._define(kind)}
        if dataclasses.is_dataclass(kind):
            table = cast("type", kind)
            return {"$ref": self._keep(table)} if any(INLINE in f.metadata for f in dataclasses.fields(table)) else self.table(table)
        item = item_of_tuple(kind)
        if item is not None and (dataclasses.is_dataclass(item) or (isinstance(item, type) and item in self.offers)):
            return {"type": "array", "items": self.value(item)}
        from pydantic import TypeAdapter

        return TypeAdapter(kind).json_schema()

    def _define(self, kind: type) -> str:
        name, offered = self.offers[kind].noun.replace(" ", "_"), self.offers[kind].by_name
        if name not in self.definitions:
            self.definitions[name] = {}  # an offer may hold another of its own kind
            tables = [self._offer(use, cls) for use, cls in offered.items()]
            short = [use for use, cls in offered.items() if not self.table(cls)["required"]]
            self.definitions[name] = {"oneOf": [*tables, *([{"enum": short}] if short else [])]}
        return f"#/$defs/{name}"

    def _keep(self, cls: type) -> str:
        """A table with the keys of an offer stands once: an offer may hold tables of offers of its own kind."""
        if cls.__name__ not in self.definitions:
            self.definitions[cls.__name__] = {}
            self.definitions[cls.__name__] = self.table(cls)
        return f"#/$defs/{cls.__name__}"

    def _offer(self, use: str, cls: type) -> JSON:
        table = self.table(cls)
        return {**table, "properties": {USE: {"const": use}, **table["properties"]}, "required": [USE, *table["required"]]}

    def _with_offer(self, own: JSON, kind: type) -> JSON:
        """A table that also takes the keys of one of the offers."""
        offered = self.offers[kind].by_name
        both = []
        for use, cls in offered.items():
            offer = self._offer(use, cls)
            merged = {**offer["properties"], **own["properties"]}
            both.append({**offer, "properties": merged, "required": [*offer["required"], *own["required"]]})
        return {"description": own["description"], "oneOf": both}


def _default(f: dataclasses.Field[Any]) -> JSON:
    """What holds when the key is left out; TOML has no null."""
    value = f.metadata.get(USE, f.default)
    return {} if value is dataclasses.MISSING or value is None else {"default": plain(value)}


def field_docs(cls: type) -> dict[str, str]:
    """The text that stands below each field of a dataclass and of those it inherits from."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError):
            continue
        assert isinstance(body, ast.ClassDef)
        for statement, after in zip(body.body, body.body[1:], strict=False):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and documented:
                docs[statement.target.id] = inspect.cleandoc(cast("Any", after).value.value)
    return docs

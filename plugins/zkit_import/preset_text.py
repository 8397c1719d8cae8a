"""Tables as the text of a TOML file, with comments."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zkit_import.drafting import Line
    from zkit_import.merging import Section

WIDTH = 120


def preset_text(sections: Sequence[Section]) -> str:
    """The file; what it holds is read back and compared."""
    text = "\n".join(_section(section) for section in sections)
    assert tomllib.loads(text) == _tables(sections), "what was written is not what was meant"
    return text


def _section(section: Section) -> str:
    note = f"# {section.note}\n" if section.note else ""
    head = f"[{section.path}]\n" if section.path else ""
    return note + head + "".join(map(_line, section.lines))


def _line(line: Line) -> str:
    if isinstance(line.value, list) and any(isinstance(each, dict) for each in line.value):
        rows = "".join(f"  {toml_value(each)},\n" for each in line.value)
        return f"{line.key} = [\n{rows}]\n"
    text = f"{line.key} = {toml_value(line.value)}"
    if not line.note:
        return f"{text}\n"
    return f"{text}  # {line.note}\n" if len(text) + len(line.note) < WIDTH else f"# {line.note}\n{text}\n"


def toml_value(value: Any) -> str:
    """A value as TOML has it, in one line."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {toml_value(each)}' for key, each in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if value >= 10_000 else str(value)
    # JSON leaves the one control character beyond ASCII's first 32 as it is, and TOML does not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _tables(sections: Sequence[Section]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for section in sections:
        table = whole
        for part in filter(None, section.path.split(".")):
            table = table.setdefault(part, {})
        table.update({line.key: line.value for line in section.lines})
    return whole

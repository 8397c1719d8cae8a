"""YAML files as tables that remember at which line each key stands. Data only: no tag makes an object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from zkit_import.said import ConfigError


class Table(dict[str, Any]):
    """A mapping of a YAML file."""

    lines: dict[str, int]

    def line(self, key: str) -> int:
        """Where a key stands."""
        return self.lines[key]


class _Loader(yaml.SafeLoader):
    """The safe loader, with lines; a key that stands twice is refused, for one of the two would be dropped."""


def read_yaml(path: Path) -> Table:
    """The whole file as a table; raises ConfigError where it is none."""
    try:
        value = yaml.load(path.read_text("utf-8-sig"), Loader=_Loader)  # noqa: S506  derived from the safe one
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: byte {error.object[error.start]:#04x}; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{place}: {error.problem or 'not a YAML file'}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(value, Table) or not value:
        raise ConfigError(f"{path}: should hold keys and values, as in `learning_rate: 2.0e-5`")
    return value


def _table(loader: _Loader, node: yaml.MappingNode) -> Iterator[Table]:
    own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    lines = [(str(loader.construct_object(key, deep=True)), key.start_mark) for key in own]
    seen: set[str] = set()
    for name, mark in lines:
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key `{name}` stands twice", mark)
        seen.add(name)
    table = Table()
    yield table
    loader.flatten_mapping(node)
    table.lines = {}
    for key, value in node.value:
        name = str(loader.construct_object(key, deep=True))
        table[name] = loader.construct_object(value, deep=True)
        table.lines[name] = key.start_mark.line + 1


_Loader.add_constructor("tag:yaml.org,2002:map", _table)

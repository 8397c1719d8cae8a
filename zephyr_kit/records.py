"""Small files of text and JSON: written whole or not at all, compared, and stood for by a digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.disk import staging_place, sync

SEAL = "blake2b"
"""The key of a file's own checksum."""


class DamagedError(ZkitError):
    """A file of ours, or of a model, that does not hold what was written."""


def read_json(path: Path, mend: str, *, kind: type = dict) -> Any:
    """The object, or whatever `kind` says, in a JSON file; raises `DamagedError`, with what mends it, for a file that is cut or garbled."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DamagedError(f"{path}: damaged ({error}); {mend}") from error
    if not isinstance(found, kind):
        raise DamagedError(f"{path}: damaged (holds {type(found).__name__}, not {kind.__name__}); {mend}")
    return found


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with a checksum of them."""
    values = json.loads(json.dumps(facts, default=str))
    return {**values, SEAL: digest(values)}


def read_sealed(path: Path, mend: str) -> dict[str, Any]:
    """What was sealed and written to a JSON file, without the checksum; raises `DamagedError` where it is not that."""
    facts: dict[str, Any] = read_json(path, mend)
    if not is_sealed(facts):
        raise DamagedError(f"{path}: damaged (does not match its checksum); {mend}")
    return without_seal(facts)


def is_sealed(facts: Mapping[str, Any]) -> bool:
    """Whether values are those that were sealed."""
    return facts.get(SEAL) == digest(without_seal(facts))


def without_seal(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The values alone."""
    return {key: value for key, value in facts.items() if key != SEAL}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; one that says the same already is left alone."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; one that says the same already is left alone."""
    if path.exists() and path.read_bytes() == text.encode():
        return
    staging = staging_place(path)
    with staging.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staging.rename(path)
    sync(path.parent)


def as_json(value: Any) -> Any:
    """A value as it comes back from a JSON file: tuples are lists."""
    return json.loads(json.dumps(value))


def digest(key: Mapping[str, Any]) -> str:
    """Stands for a key."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, a line each: `path: was …, is …`."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        lines = []
        for key in sorted({*before, *after}):
            inside = f"{path}.{key}" if path else str(key)
            if key not in before or key not in after:
                told = f"was {_short(before[key])}, is gone" if key in before else f"is new, {_short(after[key])}"
                lines.append(f"{inside}: {told}")
            else:
                lines += differences(before[key], after[key], inside)
        return lines
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for number, (old, new) in pairs for line in differences(old, new, f"{path}[{number}]")]
    return [] if before == after else [f"{path}: was {_short(before)}, is {_short(after)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

"""The head of a safetensors file, checked before anything maps the rest of it.

Eight bytes say how long the head is; it is JSON that says of each tensor its type, its shape and
where it lies. The tensors must fill the rest, without a gap and without lying over each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST = 16 * 2**20
"""Bytes of a head: for a hundred thousand tensors. The format's own limit is six times that, and would take a GB to read."""
MOST_DIMENSIONS, LARGEST = 16, 2**63
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Of an element of each type."""
METADATA = "__metadata__"


def header_problem(file: Path) -> str:
    """What is wrong with the head of a safetensors file; empty if nothing."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(LONGEST, size - 8):
            return "is no safetensors file: its head cannot be as long as it says"
        try:
            head = json.loads(stream.read(length), object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            return f"is no safetensors file: its head is not JSON ({type(error).__name__})"
    try:
        return _layout_problem(head, size - 8 - length)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        return f"is no safetensors file: its head describes no tensors ({type(error).__name__})"


def _layout_problem(head: Mapping[str, Any], size: int) -> str:
    """Whether the tensors fill `size` bytes; raises where the head is not of that form."""
    metadata = head.get(METADATA, {})
    if not all(isinstance(value, str) for value in metadata.values()):
        return "is no safetensors file: its metadata holds more than text"
    end = 0
    for name, tensor in sorted(((n, t) for n, t in head.items() if n != METADATA), key=lambda pair: pair[1]["data_offsets"]):
        begin, after = map(_whole, tensor["data_offsets"])
        bits = math.prod(map(_whole, tensor["shape"][:MOST_DIMENSIONS])) * BITS[tensor["dtype"]]
        if begin != end or bits != 8 * (after - begin) or len(tensor["shape"]) > MOST_DIMENSIONS:
            return f"is no safetensors file: tensor {name[:80]!r} does not lie where it should"
        end = after
    return "" if end == size else "is no safetensors file: its tensors do not fill it"


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < LARGEST:
        raise ValueError("no size")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values

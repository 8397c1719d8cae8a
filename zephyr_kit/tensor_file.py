"""A safetensors file, piece by piece, so that it can be hashed while it is written.

The format (huggingface.co/docs/safetensors): the length of a header in eight bytes, the header
in JSON with the type, shape and place of each tensor, and the tensors end to end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

ALIGNMENT = 8
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The parts of the file; the tensors are on the host, and contiguous."""
    # Those of wide types first, so that each is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    yield _header({name: tensors[name] for name in names})
    for name in names:
        if tensors[name].numel():
            yield tensors[name].detach().reshape(-1).view(torch.uint8).numpy().data


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    table, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.itemsize
        table[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text

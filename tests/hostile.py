"""Models that somebody has prepared to do harm: what is changed in the folder of a good one."""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Change = Callable[[Path, Path], None]
"""What is done to a folder; the second is one outside of it, with files that nobody may read."""

MARK = "code_ran"
"""The file that appears outside when code of a model has run."""
CODE = "import pathlib; pathlib.Path({place!r}).touch()\n"


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place / MARK,)


def pickled(name: str) -> Change:
    return lambda folder, outside: _replace(folder / name, pickle.dumps(Payload(outside)))


def both(*changes: Change) -> Change:
    def change(folder: Path, outside: Path) -> None:
        for each in changes:
            each(folder, outside)

    return change


def removed(name: str) -> Change:
    return lambda folder, _: (folder / name).unlink()


def settings(name: str, **values: Any) -> Change:
    """Keys of a JSON file changed; `OUT` in a text stands for the folder outside."""

    def change(folder: Path, outside: Path) -> None:
        path = folder / name
        before = json.loads(path.read_text()) if path.exists() else {}
        _replace(path, json.dumps({**before, **values}).replace("OUT", str(outside)).encode())

    return change


def written(name: str, data: bytes) -> Change:
    return lambda folder, _: _replace(folder / name, data)


def linked(name: str, target: str) -> Change:
    def change(folder: Path, outside: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target.replace("OUT", str(outside)))

    return change


def fifo(name: str) -> Change:
    def change(folder: Path, _: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def listening(name: str) -> Change:
    def change(folder: Path, outside: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(outside / "s"))
        (outside / "s").rename(folder / name)

    return change


def mapped(value: Any, *, prepare: Change | None = None, **more: Any) -> Change:
    """A weight map in which one tensor is in another file."""

    def change(folder: Path, outside: Path) -> None:
        names = _names(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        place = value.replace("OUT", str(outside)) if isinstance(value, str) else value
        weight_map = {**dict.fromkeys(names, "model-1.safetensors"), names[0]: place}
        _replace(folder / "model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": weight_map, **more}).encode())
        if prepare is not None:
            prepare(folder, outside)

    return change


def headed(head: Any, data: bytes = b"\0" * 8, *, length: int | None = None) -> Change:
    """Weights whose head is this."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return written("model.safetensors", struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(begin: Any = 0, end: Any = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def with_code(auto_map: Any, *, file: str = "config.json", **values: Any) -> Change:
    def change(folder: Path, outside: Path) -> None:
        for name in ("modeling_evil.py", "custom_generate/generate.py"):
            _replace(folder / name, CODE.format(place=str(outside / MARK)).encode())
        settings(file, auto_map=auto_map, **values)(folder, outside)

    return change


def _names(weights: Path) -> list[str]:
    data = weights.read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return [name for name in head if name != "__metadata__"]


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)


MODELING = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
TOKENIZER = {"AutoTokenizer": [None, "modeling_evil.Tokenizer"]}
config, tokenizer_config = partial(settings, "config.json"), partial(settings, "tokenizer_config.json")
LINKED = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json", "chat_template.jinja")
KERNELS = (
    *("_attn_implementation_internal", "_attn_implementation", "attn_implementation"),
    *("_experts_implementation_internal", "experts_implementation"),
)
DEEP = b"[" * 100_000 + b"]" * 100_000

REFUSED: dict[str, Change] = {
    # files that are something else
    **{f"a pickle as {name}": pickled(name) for name in (
        "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
    )},
    "a pickle as weight map": mapped("model-1.safetensors", prepare=pickled("model.safetensors.index.json")),
    "only a pickle": both(removed("model.safetensors"), pickled("pytorch_model.bin")),
    # code
    "code of an unknown model": with_code(MODELING, model_type="evil"),
    "code from elsewhere": with_code({key: f"evil/repo--{value}" for key, value in MODELING.items()}, model_type="evil"),
    "code by a full path": with_code({"AutoConfig": "OUT--modeling_evil.Config"}, model_type="evil"),
    **{f"{key} names a kernel": config(**{key: "evil/kernel"}) for key in KERNELS},
    "a kernel with a function": config(_attn_implementation_internal="evil/kernel:attend"),
    "a kernel deep inside": config(text_config={"deeper": [{"_attn_implementation_internal": "evil/kernel"}]}),
    "a kernel for a part": config(attn_implementation={"": "sdpa", "text_config": "evil/kernel"}),
    "trust_remote_code": config(trust_remote_code=True),
    "trust_remote_code inside": config(keypoint_detector_config={"model_type": "superpoint", "trust_remote_code": True}),
    "trust_remote_code in the tokenizer": tokenizer_config(trust_remote_code=True),
    "trust_remote_code for generation": settings("generation_config.json", trust_remote_code=True),
    **{f"quantised by {name}": config(quantization_config={"quant_method": name}) for name in ("gptq", "awq", "mxfp4", "evil")},
    "transformers_weights is a pickle": both(pickled("adapter_model.bin"), config(transformers_weights="adapter_model.bin")),
    "transformers_weights above": config(transformers_weights="../outside/model.safetensors"),
    "transformers_weights elsewhere": config(transformers_weights="OUT/model.safetensors"),
    # weight maps
    "weight map above": mapped("../outside/model.safetensors"),
    "weight map elsewhere": mapped("OUT/model.safetensors"),
    "weight map down and up": mapped("a/../../outside/model.safetensors"),
    "weight map below": mapped("below/model.safetensors"),
    "weight map with a backslash": mapped("..\\outside\\model.safetensors"),
    "weight map with a zero": mapped("model\0.safetensors"),
    "weight map to a device": mapped("/dev/zero"),
    "weight map to a process": mapped("/proc/self/mem"),
    "weight map to a pickle": mapped("pytorch_model.bin", prepare=pickled("pytorch_model.bin")),
    "weight map to a link": mapped("link.safetensors", prepare=linked("link.safetensors", "OUT/model.safetensors")),
    "weight map to a linked device": mapped("link.safetensors", prepare=linked("link.safetensors", "/dev/zero")),
    "weight map to a FIFO": mapped("fifo.safetensors", prepare=fifo("fifo.safetensors")),
    "weight map to nothing": mapped("nothing.safetensors"),
    "weight map to the folder": mapped(".."),
    "weight map to a number": mapped(7),
    "weight map to a list": mapped(["model-1.safetensors"]),
    "weight map is a list": mapped("model-1.safetensors", weight_map=[]),
    "weight map without metadata": mapped("model-1.safetensors", metadata=None),
    # what is no file of the folder
    **{f"{name} leads out": linked(name, f"OUT/{name}") for name in LINKED},
    "templates lead out": linked("chat_templates", "OUT"),
    "a link to passwords": linked("special_tokens_map.json", "/etc/passwd"),
    "a link to the environment": linked("chat_template.jinja", "/proc/self/environ"),
    "a link to a device": linked("model.safetensors", "/dev/zero"),
    "a link to itself": linked("model.safetensors", "model.safetensors"),
    "a link to nothing": linked("tokenizer.json", "OUT/nothing"),
    **{f"{name} is a FIFO": fifo(name) for name in LINKED if name != "tokenizer_config.json"},
    "tokenizer.json is a socket": listening("tokenizer.json"),
    "a vocabulary elsewhere": tokenizer_config(vocab_file="OUT/tokenizer.json"),
    "a tokenizer elsewhere": tokenizer_config(tokenizer_file="/etc/passwd"),
    "a process as vocabulary": tokenizer_config(vocab_file="/proc/self/environ"),
    "another version elsewhere": tokenizer_config(fast_tokenizer_files=["../outside/tokenizer.1.json"]),
    # heads of safetensors
    "head longer than the file": headed({"a": tensor()}, length=10**6),
    "head of 2^63 bytes": headed({"a": tensor()}, length=2**63),
    "no head": headed(b"", length=0),
    "fewer than eight bytes": written("model.safetensors", b"\x02"),
    "head is no JSON": headed(b"{'a': 1}"),
    "head is a list": headed([tensor()]),
    "head is deep": headed(DEEP),
    "head names a tensor twice": headed(b'{"a":' + json.dumps(tensor()).encode() + b',"a":' + json.dumps(tensor()).encode() + b"}"),
    "tensors over each other": headed({"a": tensor(0, 8), "b": tensor(4, 12)}, b"\0" * 12),
    "tensors with a gap": headed({"a": tensor(0, 8), "b": tensor(12, 20)}, b"\0" * 20),
    "tensor beyond the end": headed({"a": tensor(0, 800, (200,))}),
    "tensor before the beginning": headed({"a": tensor(-8, 0)}),
    "tensor that ends before it begins": headed({"a": tensor(8, 0)}),
    "tensor of another size": headed({"a": tensor(shape=(3,))}),
    "tensor larger than numbers": headed({"a": tensor(shape=(2**62, 2**62, 4))}),
    "tensor of a thousand dimensions": headed({"a": tensor(shape=[1] * 1000 + [2])}),
    "tensor of fractions": headed({"a": tensor(0.0, 8.0)}),
    "tensor of booleans": headed({"a": tensor(False, 8, (True, 2))}),
    "tensor of no known type": headed({"a": tensor(dtype="PICKLE")}),
    "tensor without a place": headed({"a": {"dtype": "F32", "shape": [2]}}),
    "metadata is no text": headed({"__metadata__": {"a": {}}, "a": tensor()}),
    "bytes after the last tensor": headed({"a": tensor()}, b"\0" * 9),
    # bombs
    **{f"{name} is deep": written(name, DEEP) for name in (*LINKED[:3], "special_tokens_map.json")},
    "config.json is 40 levels deep": config(a=json.loads("[" * 40 + "]" * 40)),
    "config.json is large": written("config.json", b'{"a": "' + b"x" * 9 * 2**20 + b'"}'),
    "tokenizer.json is brackets": written("tokenizer.json", b"[" + b"[]," * 5_000_000 + b"[]]"),
    "tokenizer.json is large": lambda folder, _: os.truncate(folder / "tokenizer.json", 2**34),
    "a template is large": written("chat_template.jinja", b"x" * 2**21),
    "config.json is cut off": written("config.json", b'{"a": '),
    "config.json is a list": written("config.json", b"[]"),
    "config.json is no text": written("config.json", b"\xff\xfe\xfd"),
}
"""What is refused, before the model is loaded and by who loads it."""

IGNORED: dict[str, Change] = {
    **{f"a pickle beside it: {name}": pickled(name) for name in (
        "pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "value_head.bin",
        "model.mdl", ".metadata", "__0_0.distcp", "data.pkl",
    )},
    "an archive beside it": written("model.tar", b"../../evil\0"),
    "code beside a model that needs none": with_code(MODELING),
    "code of a tokenizer that needs none": with_code(TOKENIZER, file="tokenizer_config.json"),
    "code that writes replies": with_code({}, file="generation_config.json"),
    "a path that somebody's machine has left": tokenizer_config(tokenizer_file="/home/nobody/.cache/tokenizer.json"),
    "a large log beside it": written("trainer_state.json", b"[" + b"1," * 5_000_000 + b"1]"),
}
"""What does nothing, and keeps nobody from using the model."""

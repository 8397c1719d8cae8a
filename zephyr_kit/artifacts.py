"""What the folder of a model may hold, seen to before any library reads it.

Weights as safetensors, settings as JSON, regular files that lie in the folder: nothing that could
run, lead elsewhere, or fill the memory. What the libraries refuse by themselves is refused here
too, in one place and whatever their versions; what they are known to have let pass is in
`SECURITY.md`.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.safetensors_header import header_problem

MIB = 2**20
INDEX = ".safetensors.index.json"
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json")
SMALL_JSON = (*SETTINGS, "special_tokens_map.json", "chat_template.json")
VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json")
"""Files that hold something for each token. They are not taken apart here, which would take more memory than all else that is done before
training; their readers refuse what is nested deeply."""
MOST_BYTES, MOST_BYTES_LARGE, MOST_BRACKETS = 8 * MIB, 64 * MIB, 4_000_000
"""So that no more than 1 GB is needed to read one, whatever is in it."""
MOST_BYTES_TEMPLATE = MIB
DEEPEST = 32
FOLDERS = ("chat_templates",)
"""Folders in a model's that are read."""
TEMPLATES = ".jinja"
WEIGHTS = ".safetensors"
KERNEL = re.compile(r"_implementation(_internal)?$")
"""Ends the keys whose value may name code: a kernel of the hub, told by the slash in its name (CVE-2026-4372)."""
QUANTISED = ("bitsandbytes",)
"""How weights may be quantised; other ways bring kernels or files of their own."""


class ArtifactError(ZkitError):
    """A file of a model that is not read."""


def check_folder(folder: Path) -> None:
    """Raise `ArtifactError` with all that is wrong with a model's folder."""
    found = folder_problems(folder)
    if found:
        raise ArtifactError("\n".join(found))


def folder_problems(folder: Path) -> list[str]:
    """What of a model's folder must not be read; empty if nothing."""
    return [f"{file}: {problem}" for file in _files(folder) for problem in _file_problems(file, folder)]


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            yield entry
        elif entry.name in FOLDERS:
            yield from sorted(entry.iterdir())


def _file_problems(file: Path, folder: Path) -> Iterator[str]:
    problem = place_problem(file, folder) or _content_problem(file)
    if problem:
        yield problem


def place_problem(file: Path, folder: Path) -> str:
    """Why a file is none, or not one of this folder; empty if it is."""
    try:
        target = file.resolve(strict=True)
        kind = target.stat().st_mode
    except (OSError, RuntimeError) as error:
        return f"leads nowhere ({error})" if file.is_symlink() else f"cannot be read: {error}"
    if not any(target.is_relative_to(place) for place in (folder.resolve(), *_blobs(folder))):
        return f"leads out of the folder, to {target}"
    return "" if stat.S_ISREG(kind) else "is no regular file"


def _blobs(folder: Path) -> Iterator[Path]:
    """Where the hub's cache keeps the files of a snapshot, which are links to them."""
    place = folder.resolve()
    if place.parent.name == "snapshots":
        yield place.parent.parent / "blobs"


def _content_problem(file: Path) -> str:
    if file.name.endswith(WEIGHTS):
        return header_problem(file)
    if file.name.endswith(TEMPLATES):
        return _size_problem(file, MOST_BYTES_TEMPLATE) or _text_problem(file)
    # Others are read by nobody here.
    is_read = file.name in (*SMALL_JSON, *VOCABULARIES) or file.name.endswith(INDEX)
    return _json_problem(file) if is_read else ""


def _size_problem(file: Path, most: int) -> str:
    size = file.stat().st_size
    return f"has {size / MIB:,.0f} MiB; more than {most / MIB:g} are not read" if size > most else ""


def _text_problem(file: Path) -> str:
    try:
        file.read_text("utf-8")
    except ValueError as error:
        return f"is no text in UTF-8: {error}"
    return ""


def _json_problem(file: Path) -> str:
    if problem := _size_problem(file, MOST_BYTES if file.name in SMALL_JSON else MOST_BYTES_LARGE):
        return problem
    try:
        text = _text(file)
        if file.name in VOCABULARIES:
            return "" if text.lstrip()[:1] == b"{" else "is not JSON: it holds no object"
        value = json.loads(text)
        if not _is_shallow(value):
            raise RecursionError
    except RecursionError:
        return "is nested too deeply"
    except ValueError as error:
        return f"is not JSON: {error}"
    if file.name.endswith(INDEX):
        return _index_problem(value, file.parent)
    return settings_problem(value) if file.name in SETTINGS else ""


def _text(file: Path) -> bytes:
    """What a file of JSON holds; raises ValueError for what would take much memory to take apart."""
    text = file.read_bytes()
    if text.count(b"[") + text.count(b"{") > MOST_BRACKETS:
        raise ValueError(f"more than {MOST_BRACKETS:,} brackets")
    return text


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]
        if not level:
            return True
    return False


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _index_problem(index: Any, folder: Path) -> str:
    """The map from weights to files, each of which must lie beside it (CVE-2026-69112)."""
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict) or not isinstance(index.get("metadata"), dict):
        return "holds no weight_map and metadata"
    for name in dict.fromkeys(map(str, index["weight_map"].values())):
        if not is_plain_name(name) or not name.endswith(WEIGHTS):
            return f"weight_map names {name!r}, which is no safetensors file of the folder"
        if not (folder / name).exists() and not list(_blobs(folder)):
            return f"weight_map names {name!r}, which is not there"
    return ""


def is_plain_name(name: str) -> bool:
    """Whether it names a file of a folder, and nothing elsewhere."""
    return name == os.path.basename(name) and name not in ("", ".", "..") and "\\" not in name and "\0" not in name  # noqa: PTH119


def settings_problem(settings: Any) -> str:
    """What in a configuration would have code run, or other files read, wherever it stands in it."""
    if not isinstance(settings, dict):
        return "holds no object"
    weights = settings.get("transformers_weights")
    if weights is not None and not (isinstance(weights, str) and is_plain_name(weights) and weights.endswith((WEIGHTS, INDEX))):
        return f"transformers_weights = {weights!r} names no safetensors file of the folder"
    return next((problem for key, value in _pairs(settings) if (problem := _pair_problem(key, value))), "")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, Mapping):
            yield from inner.items()
        waiting += [each for each in _inside(inner) if isinstance(each, dict | list)]


def _pair_problem(key: str, value: Any) -> str:
    if key == "trust_remote_code" and value:
        # CVE-2026-5241: a configuration that answers for the user.
        return "trust_remote_code stands in it, which is not a model's to say"
    if KERNEL.search(key) and any("/" in str(name) for name in (_inside(value) if isinstance(value, dict | list) else [value])):
        return f"{key} = {str(value)[:80]!r} names code of the hub"
    if key == "fast_tokenizer_files" and not all(is_plain_name(str(name)) for name in _inside(value)):
        return f"fast_tokenizer_files = {str(value)[:80]} names files elsewhere"
    if key.endswith("_file") and isinstance(value, str) and "/" in value and Path(value).exists():
        # Where it does not exist, it is what somebody's machine has left there, and is not read.
        return f"{key} = {value[:80]!r} is a file elsewhere"
    if key == "quantization_config" and isinstance(value, dict) and value.get("quant_method", "bitsandbytes") not in QUANTISED:
        return f"quantization_config: weights quantised by {str(value['quant_method'])[:40]!r} are not read, only by {', '.join(QUANTISED)}"
    return ""

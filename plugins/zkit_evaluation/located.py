"""Files that are read: on this machine, or in a repository of the Hugging Face hub."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

from zephyr_kit import ZkitError

HUB = re.compile(r"hf://(?:(datasets|spaces)/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
KINDS = {"datasets": "dataset", "spaces": "space", None: "model"}


def located(place: str, advice: str = "") -> Path:
    """The file that a path, or `hf://datasets/OWNER/NAME[@REVISION]/FILE`, names; fetched once. `advice` says where to get it."""
    if not place.startswith("hf://"):
        file = Path(place).expanduser()
        if not file.is_file():
            raise ZkitError(f"there is no file {file.absolute()}{advice and '; '}{advice}")
        return file
    found = HUB.fullmatch(place)
    if found is None:
        raise ZkitError(f"{place}: should be hf://datasets/OWNER/NAME/FILE, or hf://spaces/…, with @REVISION after the name if wanted")
    kind, name, revision, file_name = found.groups()
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file_name, repo_type=KINDS[kind], revision=revision))
    except Exception as error:  # whichever HTTP client is below has errors of its own
        raise ZkitError(f"{place}: cannot be had: {type(error).__name__}: {str(error).splitlines()[0]}{advice and '; '}{advice}") from error


def located_problems(place: str, advice: str = "") -> list[str]:
    """Why a file cannot be read, as a list; what is on the hub is fetched now."""
    try:
        located(place, advice)
    except ZkitError as error:
        return [str(error)]
    return []


def read_text(place: str, advice: str = "") -> str:
    """The text of a file, plain or gzip."""
    file = located(place, advice)
    data = file.read_bytes()
    return (gzip.decompress(data) if file.name.endswith(".gz") else data).decode("utf-8-sig")


def read_lines(place: str, advice: str = "") -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; raises ZkitError with the line of the first that is none."""
    rows = []
    for number, line in enumerate(read_text(place, advice).split("\n"), 1):  # `splitlines` parts at U+2028 too, which JSON lets stand
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ZkitError(f"{place}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ZkitError(f"{place}:{number}: should be an object, not {line[:40]}")
            rows.append(row)
    return rows

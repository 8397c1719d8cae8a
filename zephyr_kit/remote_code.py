"""Code that comes with a model: run only where the preset names its repository and its commit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.records import read_json
from zephyr_kit.weights import MEND, looks_like_folder

WRITTEN = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
FILES = ("config.json", "tokenizer_config.json")
KEY = "auto_map"


@dataclass(frozen=True, slots=True)
class RemoteCode:
    """A repository of the hub, at a commit."""

    repository: str
    commit: str


def read_remote_code(written: str | None) -> RemoteCode | None:
    """What `remote_code` means; raises ValueError for less than a repository with a full commit, which others can move."""
    if written is None:
        return None
    match = WRITTEN.fullmatch(written)
    if match is None:
        raise ValueError(f"`remote_code` = {json.dumps(written)} should be owner/name@COMMIT, with all 40 digits of the commit")
    return RemoteCode(*match.groups())


def code_arguments(written: str | None) -> dict[str, Any]:
    """What transformers is told: never nothing, for then it would ask whoever sits at the terminal."""
    code = read_remote_code(written)
    return {"trust_remote_code": code is not None, "code_revision": code.commit if code else None}


def check_code(weights: str, folder: Path | None, written: str | None) -> None:
    """Raise ZkitError when `remote_code` does not name the code that a model brings."""
    code = read_remote_code(written)
    if code is None:
        return
    if folder is None:
        raise ZkitError(f"{weights}: is out of reach, so nothing tells which code it brings")
    references = set(references_in(folder))
    if not references:
        raise ZkitError(f"{weights} brings no code, but `remote_code` names some: leave it out")
    for repository in sorted(repository or weights for repository in references):
        if repository != code.repository or looks_like_folder(repository):
            what = "a folder, which has no commit" if looks_like_folder(repository) else f"{repository}"
            raise ZkitError(f"{weights}: its code is in {what}, but `remote_code` names {code.repository}; it is not run")


def brings_code(folder: Path) -> bool:
    """Whether the files of a model name any."""
    return next(references_in(folder), None) is not None


def references_in(folder: Path) -> Iterator[str]:
    """The repositories of the code that a model's files name; empty for its own."""
    for file in (folder / name for name in FILES):
        if file.exists():
            named = read_json(file, MEND).get(KEY) or {}
            yield from (_repository(each) for each in _flat(named))


def qualified(named: Any, repository: str) -> Any:
    """The references of a configuration, each with its repository: they are to lead there from a folder too."""
    if isinstance(named, str):
        return named if "--" in named else f"{repository}--{named}"
    if isinstance(named, dict):
        return {key: qualified(each, repository) for key, each in named.items()}
    return [qualified(each, repository) for each in named] if isinstance(named, list | tuple) else named


def _flat(named: Any) -> Iterator[str]:
    if isinstance(named, str):
        yield named
    elif isinstance(named, dict | list):
        for each in named.values() if isinstance(named, dict) else named:
            yield from _flat(each)


def _repository(reference: str) -> str:
    return reference.rpartition("--")[0]

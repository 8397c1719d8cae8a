"""Models in Hugging Face format: where they are, what stands for their content, and whether they can be had."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from zephyr_kit import ZkitError
from zephyr_kit.artifacts import check_folder, folder_problems
from zephyr_kit.fingerprint import folder_fingerprint
from zephyr_kit.patience import within

SECONDS = 2.0
MEND = "fetch the model again, or have it made again"
CONFIG = "config.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
"""All of a repository but weights; its code is there to be looked at, and is not run."""


def looks_like_folder(weights: str) -> bool:
    """Whether this names a folder rather than a repository `owner/name`."""
    return Path(weights).expanduser().exists() or weights.startswith(("/", ".", "~")) or weights.count("/") != 1


def place_of(weights: str) -> str:
    """`weights` as transformers takes them: the full path of a folder, so that it is found from elsewhere too, or a repository."""
    folder = Path(weights).expanduser()
    return str(folder.absolute()) if folder.is_dir() else weights


def local_file(weights: str, name: str, *, revision: str | None) -> Path | None:
    """A file of a model, if it is on this machine."""
    if looks_like_folder(weights):
        file = Path(weights).expanduser() / name
        return file if file.exists() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weights, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def admit(weights: str, revision: str | None, *, fetch: bool = True) -> Path | None:
    """See to it that nothing of a model is read that could do harm; a repository's small files are fetched for that.

    Its folder; None where a repository is neither here nor can be had, which whoever reads it will tell. Raises `ArtifactError`.
    """
    folder = Path(weights).expanduser() if looks_like_folder(weights) else _snapshot(weights, revision, fetch=fetch)
    if folder is None or not folder.is_dir():
        return None
    check_folder(folder)
    return folder


def _snapshot(name: str, revision: str | None, *, fetch: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        here = _is_offline() or not fetch
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(SMALL_FILES), local_files_only=here))
    except Exception:  # whichever HTTP client is below has errors of its own
        return None


def weight_files(weights: str, revision: str | None) -> dict[str, Path]:
    """The safetensors file that each tensor of a model stands in; those of a repository are fetched if need be. Raises ZkitError."""
    folder = Path(weights).expanduser() if looks_like_folder(weights) else _whole_snapshot(weights, revision)
    index = folder / INDEX_FILE
    if index.exists():
        check_folder(folder)
        placed: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        return {tensor: folder / name for tensor, name in placed.items()}
    file = folder / WEIGHTS_FILE
    if not file.exists():
        raise ZkitError(f"{folder}: holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    check_folder(folder)
    with safe_open(file, "pt") as opened:
        return dict.fromkeys(opened.keys(), file)


def _whole_snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [*SMALL_FILES, "model*.safetensors"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=_is_offline()))
    except Exception as error:  # whichever HTTP client is below has errors of its own
        raise ZkitError(f"{name}: its weights are neither on this machine nor to be had ({type(error).__name__})") from error


def weights_fingerprint(weights: str, revision: str | None) -> Any:
    """Content of a local folder; name and commit of a repository."""
    if looks_like_folder(weights):
        return folder_fingerprint(Path(weights).expanduser())
    return [weights, commit_of(weights, revision)]


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit of a repository that is on this machine, or that would be downloaded; `revision` where neither can be known."""
    if looks_like_folder(name):
        return revision
    config = local_file(name, CONFIG, revision=revision)
    if config is not None:
        return config.parent.name
    if _is_offline():
        return revision
    found = within(SECONDS, partial(_ask_hub, name, revision))
    return found[1] or revision if found else revision


def weights_problems(weights: str, revision: str | None, *, table: str = "") -> list[str]:
    """A folder without a model, a repository that is neither here nor within reach; `table` says where `weights` is written."""
    where = f"{table}weights = {json.dumps(weights)}"
    if not looks_like_folder(weights):
        return _hub_problems(weights, revision, where)
    return [*revision_problems(weights, revision, table=table), *_folder_problems(Path(weights).expanduser(), where)]


def revision_problems(weights: str, revision: str | None, *, table: str = "") -> list[str]:
    """A revision of what has none."""
    if revision is None or not looks_like_folder(weights):
        return []
    return [f"{table}revision = {json.dumps(revision)} is one of a repository's, but weights = {json.dumps(weights)} is a folder"]


def _folder_problems(folder: Path, where: str) -> list[str]:
    if not folder.is_dir():
        return [f"{where}: there is no such folder ({folder.absolute()})"]
    if not (folder / CONFIG).exists():
        return [f"{where}: holds no {CONFIG}, so it is no model in Hugging Face format"]
    if not any(folder.glob("*.safetensors")):
        pickled = [file.name for file in folder.glob("*.bin")]
        remark = f" ({pickled[0]} is a pickle, which may run code and is not read; convert it to safetensors)" if pickled else ""
        return [f"{where}: holds no weights (*.safetensors){remark}"]
    return [f"{where}: {problem}" for problem in folder_problems(folder)]


def _hub_problems(name: str, revision: str | None, where: str) -> list[str]:
    config = local_file(name, CONFIG, revision=revision)
    if config is not None:
        return [f"{where}: {problem}" for problem in folder_problems(config.parent)]
    if _is_offline():
        reason = "the hub is switched off by HF_HUB_OFFLINE"
    else:
        reason, _ = within(SECONDS, partial(_ask_hub, name, revision)) or ("the hub does not answer", None)
    if not reason:
        return []
    advice = f"Run `hf download {name}` where there is a network and set HF_HOME, or give a folder"
    return [f"{where}: not on this machine, and {reason}. {advice}"]


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE") == "1"


def _ask_hub(name: str, revision: str | None) -> tuple[str, str | None]:
    """Why the hub does not give it, empty when it does; and the commit."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return "", get_hf_file_metadata(hf_hub_url(name, CONFIG, revision=revision), timeout=SECONDS).commit_hash
    except HfHubHTTPError as error:
        return f"the hub says: {str(error).splitlines()[0]}", None
    except Exception as error:  # whichever HTTP client is below has errors of its own
        return f"the hub cannot be reached ({type(error).__name__})", None

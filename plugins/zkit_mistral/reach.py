"""Whether a model can be had on this machine, found out within three seconds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.fingerprint import folder_fingerprint
from zkit_mistral.adapters import is_adapter

if TYPE_CHECKING:
    import torch

    from zephyr_kit.protocols import Start
    from zkit_mistral.backend import Mistral

SECONDS = 2.0


def problems(backend: Mistral, device: torch.device, *, start: Start) -> list[str]:
    """What is missing: weights, memory, a template, a kernel."""
    found = [*backend.attention.problems(device)]
    if not Path(backend.template).exists() and backend.template.endswith(".jinja"):
        found.append(f"[model] template: there is no file {Path(backend.template).absolute()}")
    if backend.scratch is not None:
        return [*found, *(problem for source in backend.scratch.text for problem in source.problems())]
    if start.folder is not None and not is_adapter(start.folder):
        return found
    weights = str(backend.weights)
    if looks_like_folder(weights):
        return [*found, *_folder_problems(Path(weights))]
    return [*found, *_hub_problems(weights, backend.revision)]


def weights_fingerprint(backend: Mistral) -> Any:
    """Content of a local folder; name and revision of a repository."""
    if backend.weights is None:
        return None
    if looks_like_folder(backend.weights):
        return folder_fingerprint(Path(backend.weights))
    return [backend.weights, backend.revision]


def looks_like_folder(weights: str) -> bool:
    """Whether this names a folder rather than a repository `owner/name`."""
    return Path(weights).exists() or weights.startswith(("/", ".", "~")) or weights.count("/") != 1


def _folder_problems(folder: Path) -> list[str]:
    where = f"[model] weights = {json.dumps(str(folder))}"
    if not folder.is_dir():
        return [f"{where}: there is no such folder ({folder.absolute()})"]
    if not (folder / "config.json").exists():
        return [f"{where}: holds no config.json, so it is no model in Hugging Face format"]
    if not any(folder.glob("*.safetensors")):
        pickled = [file.name for file in folder.glob("*.bin")]
        remark = f" ({pickled[0]} is a pickle, which may run code and is not read; convert it to safetensors)" if pickled else ""
        return [f"{where}: holds no weights (*.safetensors){remark}"]
    return []


def _hub_problems(name: str, revision: str | None) -> list[str]:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return []
    reason = "the hub is switched off by HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") == "1" else _unreachable(name, revision)
    if reason is None:
        return []
    advice = f"Run `hf download {name}` where there is a network and set HF_HOME, or give a folder: --set model.weights=FOLDER"
    return [f'[model] weights = "{name}": not on this machine, and {reason}. {advice}']


def _unreachable(name: str, revision: str | None) -> str | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=SECONDS)
    except HfHubHTTPError as error:
        return f"the hub says: {str(error).splitlines()[0]}"
    except Exception as error:  # whichever HTTP client is below has errors of its own
        return f"the hub cannot be reached ({type(error).__name__})"
    return None

"""Whether a model can be had on this machine, found out within three seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.fingerprint import file_fingerprint, folder_fingerprint
from zephyr_kit.patience import within

if TYPE_CHECKING:
    import torch

    from zephyr_kit.protocols import Start
    from zkit_mistral.settings import Settings

SECONDS = 2.0
ORIGIN_KEYS = ("weights", "revision", "scratch")
"""Where the first stage's model comes from; a later stage goes on with the one before it."""


def problems(settings: Settings, device: torch.device, *, start: Start) -> list[str]:
    """What is missing: weights, a template, a kernel; and what cannot be honoured."""
    found = [*settings.attention.problems(device), *refusals(settings, start)]
    template = Path(settings.template)
    if settings.template.endswith(".jinja") and not template.exists():
        found.append(f"[model] template: there is no file {template.absolute()}")
    if start.folder is None:
        found += _origin_problems(settings)
    return found


def refusals(settings: Settings, start: Start) -> Iterator[str]:
    """What no machine can honour: said beforehand, and again by whoever loads it all the same."""
    if start.folder is None:
        if settings.scratch is not None and settings.lora is not None:
            yield (
                "[model.lora] on a model from [model.scratch]: the random weights below the adapter would be kept nowhere; "
                "train them in full first, and set `model.lora` in a later stage"
            )
        if settings.revision is not None and settings.weights is not None and looks_like_folder(settings.weights):
            yield f'[model] revision = "{settings.revision}" is one of a repository\'s, but weights = "{settings.weights}" is a folder'
        return
    for key in ORIGIN_KEYS:
        if key in start.changed:
            yield f"model.{key} in a later stage: it starts from what the stage before left ({start.folder}), so only the first can set it"


def weights_fingerprint(settings: Settings) -> Any:
    """Content of a local folder; name and revision of a repository."""
    if settings.weights is None:
        return None
    if looks_like_folder(settings.weights):
        return folder_fingerprint(Path(settings.place))
    return [settings.weights, settings.revision]


def template_fingerprint(settings: Settings) -> str:
    """Name of a template that is at hand; content of a file."""
    file = Path(settings.template)
    return file_fingerprint(file) if settings.template.endswith(".jinja") and file.exists() else settings.template


def looks_like_folder(weights: str) -> bool:
    """Whether this names a folder rather than a repository `owner/name`."""
    return Path(weights).exists() or weights.startswith(("/", ".", "~")) or weights.count("/") != 1


def _origin_problems(settings: Settings) -> list[str]:
    if settings.scratch is not None:
        return [problem for source in settings.scratch.text for problem in source.problems()]
    if looks_like_folder(str(settings.weights)):
        return _folder_problems(Path(settings.place).expanduser())
    return _hub_problems(settings.place, settings.revision)


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
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        reason: str | None = "the hub is switched off by HF_HUB_OFFLINE"
    else:
        reason = within(SECONDS, partial(_unreachable, name, revision))
    if reason == "":
        return []
    advice = f"Run `hf download {name}` where there is a network and set HF_HOME, or give a folder: --set model.weights=FOLDER"
    return [f'[model] weights = "{name}": not on this machine, and {reason or "the hub does not answer"}. {advice}']


def _unreachable(name: str, revision: str | None) -> str:
    """Why the hub does not give it; empty when it does."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=SECONDS)
    except HfHubHTTPError as error:
        return f"the hub says: {str(error).splitlines()[0]}"
    except Exception as error:  # whichever HTTP client is below has errors of its own
        return f"the hub cannot be reached ({type(error).__name__})"
    return ""

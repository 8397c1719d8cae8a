"""Whether a model's weights can be had, found out within three seconds, and what stands for their content."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.fingerprint import folder_fingerprint
from zephyr_kit.patience import within

if TYPE_CHECKING:
    from zkit_feedback.reward import RewardModel

SECONDS = 2.0
CONFIG = "config.json"


def looks_like_folder(weights: str) -> bool:
    """Whether this names a folder rather than a repository `owner/name`."""
    return Path(weights).expanduser().exists() or weights.startswith(("/", ".", "~")) or weights.count("/") != 1


def weights_fingerprint(weights: str, revision: str | None) -> Any:
    """Content of a local folder; name and revision of a repository."""
    return folder_fingerprint(Path(weights).expanduser()) if looks_like_folder(weights) else [weights, revision]


def weights_problems(weights: str, revision: str | None) -> list[str]:
    """A folder without a model, a repository that is neither here nor within reach."""
    where = f"weights = {json.dumps(weights)}"
    if not looks_like_folder(weights):
        return _hub_problems(weights, revision, where)
    folder = Path(weights).expanduser()
    if revision is not None:
        return [f"{where}: is a folder, but revision = {json.dumps(revision)} is one of a repository's"]
    if not folder.is_dir():
        return [f"{where}: there is no such folder ({folder.absolute()})"]
    if not (folder / CONFIG).exists():
        return [f"{where}: holds no {CONFIG}, so it is no model in Hugging Face format"]
    if not any(folder.glob("*.safetensors")):
        return [f"{where}: holds no weights (*.safetensors)"]
    return []


def classifier_problems(judge: RewardModel) -> list[str]:
    """A model that is no reward model, and one without a chat template; nothing yet of one that is not on this machine."""
    config = _local(judge, CONFIG)
    if config is None:
        return []
    where = f"weights = {json.dumps(judge.weights)}"
    facts = json.loads(config.read_text("utf-8"))
    kinds = facts.get("architectures") or ["no architecture"]
    if not kinds[0].endswith("ForSequenceClassification"):
        return [f"{where}: is a {kinds[0]}; a reward model is a …ForSequenceClassification with one label"]
    num_labels = len(facts.get("id2label") or [0, 1])
    if num_labels != 1:
        return [f"{where}: has {num_labels} labels; a reward model has one, the score"]
    if judge.template is None and not _has_template(judge):
        return [f"{where}: its tokenizer has no chat template; write template = FILE.jinja"]
    return []


def _has_template(judge: RewardModel) -> bool:
    """A template stands in a file of its own, or in the tokenizer's."""
    if any(_local(judge, name) for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = _local(judge, "tokenizer_config.json")
    return settings is not None and bool(json.loads(settings.read_text("utf-8")).get("chat_template"))


def _local(judge: RewardModel, name: str) -> Path | None:
    """A file of the model, if it is on this machine."""
    if looks_like_folder(judge.weights):
        file = Path(judge.place) / name
        return file if file.exists() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(judge.weights, name, revision=judge.revision)
    return Path(found) if isinstance(found, str) else None


def _hub_problems(name: str, revision: str | None, where: str) -> list[str]:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, CONFIG, revision=revision), str):
        return []
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        reason: str | None = "the hub is switched off by HF_HUB_OFFLINE"
    else:
        reason = within(SECONDS, partial(_unreachable, name, revision))
    if reason == "":
        return []
    advice = f"Run `hf download {name}` where there is a network and set HF_HOME, or give a folder"
    return [f"{where}: not on this machine, and {reason or 'the hub does not answer'}. {advice}"]


def _unreachable(name: str, revision: str | None) -> str:
    """Why the hub does not give it; empty when it does."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, CONFIG, revision=revision), timeout=SECONDS)
    except HfHubHTTPError as error:
        return f"the hub says: {str(error).splitlines()[0]}"
    except Exception as error:  # whichever HTTP client is below has errors of its own
        return f"the hub cannot be reached ({type(error).__name__})"
    return ""

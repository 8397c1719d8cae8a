"""What the scores of a model depend on, by content: the same weights elsewhere are the same model."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.fingerprint import folder_fingerprint
from zephyr_kit.protocols import Start
from zephyr_kit.records import read_json
from zephyr_kit.weights import CONFIG, MEND, looks_like_folder, weights_fingerprint
from zkit_mistral.adapters import CONFIG_FILE, is_adapter
from zkit_mistral.loading import bare_weights
from zkit_mistral.scratch import shape_of

if TYPE_CHECKING:
    from zkit_mistral.settings import Scratch, Settings

RECIPE = 1
"""Raised when the same model comes to score otherwise, by more than rounding."""
BASE_KEY = "base_model_name_or_path"


def scores_fingerprint(settings: Settings, start: Start) -> dict[str, Any]:
    """See `protocols.Backend`."""
    quantize = None if settings.quantize is None else settings.quantize.facts()
    float8 = {} if settings.fp8 == "none" else {"fp8": settings.fp8}
    return {"recipe": RECIPE, "dtype": settings.dtype, "quantize": quantize, **float8, **_weights(settings, start)}


def _weights(settings: Settings, start: Start) -> dict[str, Any]:
    if start.folder is None and settings.scratch is not None:
        return {"scratch": _drawn(settings.scratch), "seed": start.seed}
    place, revision = bare_weights(settings, start)
    weights = _files(Path(place), CONFIG) if looks_like_folder(place) else weights_fingerprint(place, revision)
    if start.folder is None or not is_adapter(start.folder):
        return {"weights": weights}
    # Where the base lies is said in the adapter's configuration; what it is, by its content.
    adapter = read_json(start.folder / CONFIG_FILE, MEND)
    return {"weights": weights, "adapter": {**_files(start.folder), **{key: adapter[key] for key in adapter if key != BASE_KEY}}}


def _files(folder: Path, *names: str) -> dict[str, str]:
    """Digests of the files with weights, and of those that are named."""
    found = folder_fingerprint(folder, (".safetensors", *names))
    return {name: digest for name, digest in found.items() if name.endswith(".safetensors") or name in names}


def _drawn(scratch: Scratch) -> dict[str, Any]:
    """What random weights depend on: their shapes, and who draws them."""
    text = [source.fingerprint() for source in scratch.text]
    makers = {name: version(name) for name in ("torch", "transformers")}
    return {**shape_of(scratch), "vocabulary": scratch.vocabulary, "text": text, "made_by": makers}

"""Whether a model can be had on this machine, found out within three seconds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_kit.doctor import lacking
from zephyr_kit.fingerprint import file_fingerprint
from zephyr_kit.weights import looks_like_folder, revision_problems, weights_problems
from zkit_mistral.adapters import NO_DORA, earlier_lora

if TYPE_CHECKING:
    import torch

    from zephyr_kit.protocols import Start
    from zkit_mistral.settings import Settings

TABLE = "[model] "
ORIGIN_KEYS = ("weights", "revision", "scratch")
"""Where the first stage's model comes from; a later stage goes on with the one before it."""


def problems(settings: Settings, device: torch.device, *, start: Start) -> list[str]:
    """What is missing: weights, a template, a kernel; and what cannot be honoured."""
    found = [*settings.attention.problems(device), *refusals(settings, start)]
    if settings.activation_offload and device.type != "cuda":
        found.append(f"[model] activation_offload: moves what a CUDA GPU keeps to the host, but the device is {device.type}; leave it out")
    if settings.fp8 != "none":
        from zkit_mistral import float8

        found += float8.problems(device)
    if settings.compile and device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        found.append("[model] compile: torch.compile needs a C++ compiler on a CPU, and there is no g++ (nor what CXX names); leave it out")
    if settings.kernels == "liger" and not wants_liger(settings, device):
        found.append(
            "[model] kernels: Liger's run on CUDA GPUs, in bfloat16 and float32, where it is installed (pip install 'zephyr-kit[liger]'); "
            f'this is {device.type} in {settings.dtype}; leave it out, or set it to "torch"'
        )
    template = Path(settings.template)
    if settings.template.endswith(".jinja") and not template.exists():
        found.append(f"[model] template: there is no file {template.absolute()}")
    if start.folder is None:
        found += _origin_problems(settings)
    return found


def wants_liger(settings: Settings, device: torch.device) -> bool:
    """Whether Liger's kernels are asked for, and can be had; what is compiled joins such passes by itself, and cannot look into them."""
    asked = settings.kernels == "liger" or (settings.kernels == "auto" and not settings.compile)
    return asked and settings.dtype != "float64" and not _lacks_liger(device)


def choices(device: torch.device) -> dict[str, str]:
    """What a bfloat16 model gets on a device, and why."""
    from zkit_mistral.softmax import lacks_triton

    without_liger, without_triton = _lacks_liger(device), lacks_triton(device)
    return {
        "kernels": f"torch's norms, activations and rotations: {without_liger}" if without_liger else "Liger's, unless they are compiled",
        "head": f"torch's, logits in the model's type: {without_triton}" if without_triton else "Triton's, logits in float32",
    }


def _lacks_liger(device: torch.device) -> str:
    if device.type != "cuda":
        return f"the device is {device.type}"
    there = find_spec("liger_kernel") is not None and not lacking("zephyr-kit", "liger")
    return "" if there else "no Liger, or an old one: pip install 'zephyr-kit[liger]'"


def refusals(settings: Settings, start: Start) -> Iterator[str]:
    """What no machine can honour: said beforehand, and again by whoever loads it all the same."""
    if start.folder is None:
        if settings.scratch is not None and settings.lora is not None:
            yield (
                "[model.lora] on a model from [model.scratch]: the random weights below the adapter would be kept nowhere; "
                "train them in full first, and set `model.lora` in a later stage"
            )
        if settings.weights is not None:
            yield from revision_problems(settings.weights, settings.revision, table=TABLE)
        return
    earlier = earlier_lora(start)
    if "lora" in start.changed and earlier and settings.lora and (earlier.dora or settings.lora.dora):
        yield NO_DORA
    for key in ORIGIN_KEYS:
        if key in start.changed:
            yield f"model.{key} in a later stage: it starts from what the stage before left ({start.folder}), so only the first can set it"


def template_fingerprint(settings: Settings) -> str:
    """Name of a template that is at hand; content of a file."""
    file = Path(settings.template)
    return file_fingerprint(file) if settings.template.endswith(".jinja") and file.exists() else settings.template


def _origin_problems(settings: Settings) -> list[str]:
    if settings.scratch is not None:
        return [problem for source in settings.scratch.text for problem in source.problems()]
    weights = str(settings.weights)
    # A folder's revision is among the refusals.
    return weights_problems(weights, None if looks_like_folder(weights) else settings.revision, table=TABLE)

"""Whether unsloth can be had on this machine, found out without importing it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

if TYPE_CHECKING:
    import torch

WHERE = '[model] use = "unsloth": '
DEVICES = ("cuda", "xpu")
"""As torch calls the GPUs of NVIDIA and AMD, and those of Intel."""
INSTALL = "pip install 'zephyr-kit[unsloth]'"
PARTS = ("unsloth", "unsloth_zoo")


def problems(device: torch.device) -> list[str]:
    """Why it cannot train here; empty if it can."""
    if device.type not in DEVICES:
        needs = "unsloth needs an NVIDIA (or AMD, or Intel) GPU"
        return [f'{WHERE}{needs}, and the device is {device}: use = "mistral" runs here']
    missing = [name for name in PARTS if _installed(name) is None]
    if missing:
        return [f"{WHERE}not installed: {' and '.join(missing)}; {INSTALL}"]
    return list(_beyond())


def _beyond() -> Iterator[str]:
    """What is installed in a version that unsloth does not take, by its own word."""
    told = set()
    for part in PARTS:
        for requirement in map(Requirement, requires(part) or ()):
            found = _installed(requirement.name)
            if found is None or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
                continue
            broken = [str(each) for each in requirement.specifier if not each.contains(found, prereleases=True)]
            if broken and requirement.name not in told:
                told.add(requirement.name)
                takes = f"{part} {version(part)} takes {requirement.name}{','.join(broken)}"
                yield f"{WHERE}{takes}, and {found} is installed; an environment with both: {INSTALL}"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

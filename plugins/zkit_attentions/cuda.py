"""What kernels for CUDA GPUs ask of a machine."""

from __future__ import annotations

from importlib.util import find_spec

import torch


def cuda_problems(
    name: str, device: torch.device, *, capability: tuple[int, int], highest: int | None = None, package: str = "", extra: str = ""
) -> list[str]:
    """Why a kernel cannot run on `device`: no CUDA GPU, one too old or too new, or a package that is missing and what installs it."""
    if device.type != "cuda":
        return [f'[model] attention: {name} runs on CUDA GPUs, and the device is {device.type}; use "auto"']
    if package and not _is_there(package):
        return [f'[model] attention: {name} needs {package}, which is not installed: pip install {extra or package}; or use "auto"']
    found = torch.cuda.get_device_capability(device)
    if found < capability:
        needed, told = (".".join(map(str, each)) for each in (capability, found))
        return [f'[model] attention: {name} needs a GPU of compute capability {needed} or higher, and {device} has {told}; use "auto"']
    if highest is not None and found[0] > highest:
        told = ".".join(map(str, found))
        return [f'[model] attention: {name} runs on GPUs of compute capability up to {highest}.x, and {device} has {told}; use "auto"']
    return []


def _is_there(package: str) -> bool:
    within, _, name = package.rpartition(".")
    return (not within or _is_there(within)) and find_spec(package if within else name) is not None

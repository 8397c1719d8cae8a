"""What a device holds and how fast it multiplies: measured for the one that is here, tabled for others."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zephyr_kit import ZkitError
from zephyr_kit.exits import Exit
from zephyr_kit.garbage import look_as_usual
from zephyr_kit.sizes import GIB, KIB

CONTEXT = int(0.75 * GIB)
"""Bytes that CUDA and its libraries hold beside the tensors: about as much on every card, not measured."""
HOST_LIBRARIES = int(0.6 * GIB)
"""Bytes of a process with torch and a model library in it, before there is a model."""
GPU_EFFICIENCY, CPU_EFFICIENCY = 0.4, 0.6
"""The share of the rate of large products that a training step reaches: an assumption, but for 0.46 to 0.49 on one H200."""
PROBE_SECONDS, PROBE_ROWS = 0.3, 512

TABLED = {
    "b200": (178.3, 2250),
    "h200": (139.8, 989),
    "h100-80": (79.1, 989),
    "a100-80": (79.1, 312),
    "a100-40": (39.4, 312),
    "l40s": (44.4, 362),
    "a6000": (47.4, 155),
    "rtx5090": (31.3, 209),
    "rtx4090": (23.5, 165),
    "rtx3090": (23.6, 71),
    "l4": (22.0, 121),
    "a10g": (22.0, 70),
}
"""GiB that torch can use of it, and 10^12 operations a second in dense bfloat16, by the datasheets."""


class UnknownDevice(ZkitError):
    """A name that is no device's."""

    exit = Exit.NOT_UNDERSTOOD


@dataclass(frozen=True)
class Device:
    """A device to plan for."""

    name: str
    kind: str
    """`cpu` or `cuda`."""
    memory: int
    libraries: int
    """Bytes that are taken before there is a model, as far as that is known without loading anything."""
    tabled_rate: float | None = None
    """Operations a second, efficiency included; None where it must be measured."""
    count: int = 1
    """So many of them share the model."""

    def for_each_of(self, processes: int) -> Device:
        """As each of so many processes of a machine has it: a GPU of its own, or its part of the host."""
        return self if self.kind == "cuda" else replace(self, memory=self.memory // processes)

    def facts(self, count: int) -> dict[str, Any]:
        """For a program, of so many of them."""
        return {"name": self.name, "bytes": self.memory, "count": count, "rate_from_a_table": self.tabled_rate is not None}


def named_device(name: str) -> Device:
    """A device of the table, or one of this machine (`auto`, `cpu`, `cuda`, `cuda:1`)."""
    if name.lower() in TABLED:
        gib, peak = TABLED[name.lower()]
        return Device(name.lower(), "cuda", int(gib * GIB), CONTEXT, peak * 1e12 * GPU_EFFICIENCY)
    try:
        return this_device(find_device(name))
    except ZkitError as error:
        raise type(error)(f"{error}; or plan for one of {', '.join(sorted(TABLED))}") from error


def this_device(device: torch.device) -> Device:
    """The device that is here."""
    if device.type != "cuda":
        return Device(device.type, "cpu", host_memory(), HOST_LIBRARIES)
    facts = torch.cuda.get_device_properties(device)
    return Device(str(device), "cuda", int(facts.total_memory), CONTEXT, _rate_by_name(facts.name))


def host_memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of the host, or as many as the container of this process may take."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(limit.read_text("ascii")))
    except (OSError, ValueError):  # there is no such file, or no limit, which is written "max"
        return whole


def memory_left(device: torch.device, told: Path = Path("/proc/meminfo")) -> int:
    """Bytes of the device that nobody but this process has in use just now; all of them where that is not to be learnt."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", told.read_text("ascii", "replace"), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return min(host_memory(), KIB * int(found[1]) + resident()) if found else host_memory()


def resident() -> int:
    """Bytes of memory that this process has in use."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  read in one go
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return HOST_LIBRARIES


def memory_in_use(device: torch.device) -> int:
    """Bytes that this process holds: of a GPU, or of the host where the device is none."""
    return int(torch.cuda.memory_reserved(device)) if device.type == "cuda" else resident()


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` begin anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:  # noqa: PTH123  one write, whole
        file.write("5")


def peak_memory(device: torch.device) -> int:
    """The most bytes that `memory_in_use` has come to since `forget_peak`; since the process began, where the system cannot forget."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        status = Path("/proc/self/status").read_text("ascii", "replace")
    except OSError:  # not Linux
        return resident()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return KIB * int(found[1]) if found else resident()


def measured_rate(matrix: tuple[int, int], dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations a second of products with a matrix of the model's own shape, efficiency included; takes a third of a second."""
    width, depth = matrix
    rows, weight = torch.ones(PROBE_ROWS, depth, dtype=dtype), torch.ones(depth, width, dtype=dtype)
    torch.mm(rows, weight)  # the first one makes threads and buffers
    begun, count = clock(), 0
    while (spent := clock() - begun) < PROBE_SECONDS or not count:
        torch.mm(rows, weight)
        count += 1
    return CPU_EFFICIENCY * count * 2 * PROBE_ROWS * width * depth / max(spent, 1e-9)


def _rate_by_name(name: str) -> float | None:
    """That of the table's card whose name stands in what the driver calls it."""
    told = name.lower().replace(" ", "")
    found = [key for key in TABLED if key.split("-")[0] in told]
    return max((TABLED[key][1] for key in found), default=0) * 1e12 * GPU_EFFICIENCY or None


def find_device(name: str = "auto") -> torch.device:
    """The device to train on: the named one, or the best of this machine."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnknownDevice(f"--device {name}: torch knows no such device; try cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ZkitError(f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices on this machine")
    return device


def take_device(name: str = "auto") -> torch.device:
    """The device to work on, from now on also torch's current one: Triton's kernels run there, wherever their tensors are."""
    return made_current(find_device(name))


def made_current(device: torch.device) -> torch.device:
    """The device, which torch takes from now on where none is named."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def give_back_memory() -> None:
    """Return what models that are no longer there have held; torch and glibc keep it, and another could not have it."""
    look_as_usual()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""A step of ours under torch's profiler: which kernels take the time, how many are launched, and whether the host waits."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import Cell
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.prepared import open_work
from benchmarks.ours import open_stage

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
NUM_KERNELS, NUM_PLACES = 30, 30
LARGEST_FILE = 5_000_000
"""Bytes of a chrome trace, compressed, that are kept."""


def trace(cell: Cell, place: Path) -> dict[str, Any]:
    """A step to warm up, one under the profiler, one in which torch tells of every wait; `place` is for the chrome trace."""
    from torch.profiler import ProfilerActivity, profile

    work = open_work(cell)
    with tempfile.TemporaryDirectory() as folder:
        trainer, feed = open_stage(cell, work, Path(folder), Clock(device=cell.device))
        first, second, third = islice(feed.steps(work, first=0), 3)
        trainer.step(first)
        _wait(cell)
        # Of a GPU its kernels and the calls to its driver: torch's own operators, too, would take minutes to write.
        with profile(activities=[ProfilerActivity.CPU if cell.device == "cpu" else ProfilerActivity.CUDA]) as profiled:
            trainer.step(second)
            _wait(cell)
        told = _waits_told(cell, trainer, third)
    kept = _chrome(profiled, place)
    events = profiled.key_averages()
    return {**_summary(events, on_gpu=cell.device != "cpu"), "waits that torch tells of": told, "chrome trace": kept}


def _summary(events: Sequence[Any], *, on_gpu: bool) -> dict[str, Any]:
    counts = {event.key: event.count for event in events}
    kernels = [event for event in events if not on_gpu or _is_on_gpu(event)]
    times = sorted(((_microseconds(event, on_gpu=on_gpu), event) for event in kernels), key=lambda pair: -pair[0])
    whole = sum(time for time, _ in times) or 1.0
    return {
        "kernel launches": sum(counts.get(name, 0) for name in LAUNCHES),
        "waits of the host": {name: counts[name] for name in WAITS if name in counts},
        "copies": {event.key: event.count for event in events if event.key.startswith("Memcpy")},
        "ms of all kernels": round(whole / 1e3, 2),
        "kernels": [
            {"name": event.key[:160], "calls": event.count, "ms": round(time / 1e3, 3), "share": round(time / whole, 4)}
            for time, event in times[:NUM_KERNELS]
        ],
    }


def _is_on_gpu(event: Any) -> bool:
    from torch.autograd import DeviceType

    return bool(event.device_type == DeviceType.CUDA)


def _microseconds(event: Any, *, on_gpu: bool) -> float:
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)


def _waits_told(cell: Cell, trainer: Any, step: Any) -> dict[str, Any] | None:
    """Where the host waits for the device within a step, and how often."""
    if cell.device == "cpu":
        return None
    import torch

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return _by_place(caught)


def _by_place(caught: Iterable[Any]) -> dict[str, Any]:
    places = Counter(f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchroniz" in str(each.message))
    return {"in all": places.total(), "by place": dict(places.most_common(NUM_PLACES))}


def _chrome(profiled: Any, place: Path) -> str | None:
    """The name of the file, if it is small enough to be kept."""
    place.parent.mkdir(parents=True, exist_ok=True)
    profiled.export_chrome_trace(str(place))
    if place.stat().st_size <= LARGEST_FILE:
        return place.name
    place.unlink()
    return None


def _wait(cell: Cell) -> None:
    if cell.device != "cpu":
        import torch

        torch.cuda.synchronize()

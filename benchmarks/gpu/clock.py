"""When steps end, by the clock of the device that takes them; and how much of its memory they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.trace import Trace, Watch
from zephyr_kit.sizes import GIB


@dataclass
class Clock(Watch):
    """Notes when each step ends without waiting for it: a host that runs ahead is not held up."""

    device: str = "cpu"
    marks: list[Any] = field(default_factory=list)
    while_loading: int = 0
    """Bytes of the device's memory."""

    @property
    def on_gpu(self) -> bool:
        """Whether there is anything to ask the device."""
        return self.device.startswith("cuda")

    def loaded(self) -> None:
        """From here on the peak counts."""
        super().loaded()
        if self.on_gpu:
            import torch

            self.while_loading, self.start = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    def step_ended(self) -> None:
        """Called after each step, which the device may still be taking."""
        super().step_ended()
        if self.on_gpu:
            import torch

            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
            self.marks.append(mark)

    def trace(self, losses: Sequence[float], norms: Sequence[float]) -> Trace:
        """All that was noted."""
        told = super().trace(losses, norms)
        if not self.on_gpu:
            return told
        import torch

        torch.cuda.synchronize()
        seconds = [before.elapsed_time(mark) / 1e3 for before, mark in zip(self.marks[:-1], self.marks[1:], strict=True)]
        return replace(told, seconds=seconds)

    def memory(self) -> dict[str, float | None]:
        """GiB of the device's memory, in all that came after loading."""
        names = ("peak GiB", "peak GiB reserved", "GiB when loaded", "peak GiB while loading", "GiB of the device in use")
        if not self.on_gpu:
            return dict.fromkeys(names)
        import torch

        free, whole = torch.cuda.mem_get_info()
        told = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), self.start, self.while_loading, whole - free)
        return {name: round(value / GIB, 3) for name, value in zip(names, told, strict=True)}

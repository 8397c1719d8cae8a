"""What is asked of an export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zkit_export import llama_cpp
from zkit_export.gguf_file import TYPES, gguf_problem


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    to: Path
    merge: bool = False
    dtype: str | None = None
    gguf: tuple[str, ...] = ()

    def problems(self) -> Iterator[str]:
        """What stands in the way, found before anything is loaded."""
        if self.to.exists() and (not self.to.is_dir() or any(self.to.iterdir())):
            yield f"{self.to}: is there already; name a folder that is not"
        if self.gguf and (problem := gguf_problem()):
            yield problem
        for kind in self.gguf:
            if kind.lower() not in TYPES and (problem := llama_cpp.quantiser_problem(kind)):
                yield problem

"""The completer `model`: replies of any model that a backend can load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.config import plain
from zephyr_kit.protocols import Backend, Bench, Failure, Reply, Request, Start
from zephyr_kit.replying import replies_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ModelCompleter:
    """Replies of a model that is loaded for them, and let go after the last."""

    model: Backend
    """Who writes, as a `[model]` table names it."""

    def complete(self, requests: Sequence[Request], bench: Bench) -> Iterator[tuple[int, Reply | Failure]]:
        if requests:
            from zephyr_kit.devices import give_back_memory

            give_back_memory()
            yield from replies_of(self.model.load(bench.device, start=Start(), train=False), requests)

    def fingerprint(self, bench: Bench) -> Mapping[str, Any]:
        return {"use": "model", "model": plain(dict(self.model.fingerprint()))}

    def problems(self, device: torch.device) -> Sequence[str]:
        return self.model.problems(device, start=Start())

    def miniature(self, folder: Path) -> ModelCompleter:
        return replace(self, model=self.model.miniature(folder))

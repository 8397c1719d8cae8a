"""The completer `own`: replies of the model that the stages before have made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit import ZkitError
from zephyr_kit.protocols import Bench, Failure, Policy, Reply, Request
from zephyr_kit.replying import replies_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OwnCompleter:
    """Replies of the model that the stages before have made, or of `[model]` if none has trained it yet."""

    def complete(self, requests: Sequence[Request], bench: Bench) -> Iterator[tuple[int, Reply | Failure]]:
        if requests:
            with _opened(bench) as policy:
                yield from replies_of(policy, requests)

    def fingerprint(self, bench: Bench) -> Mapping[str, Any]:
        return {"use": "own", "model": bench.own_key}

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> OwnCompleter:
        return self


def _opened(bench: Bench) -> AbstractContextManager[Policy]:
    if bench.own is None:
        raise ZkitError('completer own: there is no model of a stage before; name one: { use = "model", model = { use = …, weights = … } }')
    return bench.own()

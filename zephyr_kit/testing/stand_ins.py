"""The smallest model and tokenizer there are, to try plugins on without a model library."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from zephyr_kit.batch import Batch, Tree
from zephyr_kit.example import Example
from zephyr_kit.protocols import Leaner, Reply, Request, Skeleton, Start

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

NUM_BYTES = 256
END = NUM_BYTES


class Table(nn.Module):
    """Scores the next token by the token before it alone."""

    def __init__(self, vocabulary: int, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.logits_VV = nn.Parameter(torch.randn(vocabulary, vocabulary, generator=draw).to(dtype))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.dropout = nn.Dropout(0.0)

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities of the targets, (M,)."""
        rows = self.dropout(self.logits_VV)[batch.tokens_T[batch.source_M]]
        wide = torch.promote_types(rows.dtype, torch.float32)
        logp: Tensor = rows.to(wide).log_softmax(-1).gather(-1, batch.target_M[:, None]).squeeze(-1)
        return logp


class TablePolicy:
    """The smallest policy there is, with a twin for a reference."""

    def __init__(self, *, vocabulary: int = 16, dtype: torch.dtype = torch.float32, dropout: float = 0.0, seed: int = 0) -> None:
        self.module = Table(vocabulary, dtype, seed)
        self.module.dropout.p = dropout
        self._twin = copy.deepcopy(self.module).requires_grad_(requires_grad=False)
        self._scorer = self.module

    def score(self, batch: Batch) -> Tensor:
        """See `protocols.Policy`."""
        logp: Tensor = self._scorer(batch)
        return logp

    def keep_reference(self) -> None:
        """It has a twin already."""

    def shard(self, mesh: DeviceMesh) -> None:
        """Nothing of it is worth sharing out."""
        raise NotImplementedError

    def share_rows(self, group: ProcessGroup) -> None:
        """Its rows are short."""
        raise NotImplementedError

    @contextmanager
    def reference(self) -> Iterator[None]:
        """See `protocols.Policy`."""
        self._scorer = self._twin
        try:
            yield
        finally:
            self._scorer = self.module

    def generate(self, requests: Sequence[Request], *, on_text: Callable[[str], None] | None = None) -> Iterator[tuple[int, Reply]]:
        """A few words drawn by the request alone."""
        for number, request in enumerate(requests):
            digest = hashlib.blake2b(repr(request).encode(), digest_size=4).hexdigest()
            yield number, Reply(" ".join(digest))

    def save(self, folder: Path) -> None:
        """It is nobody's result."""
        raise NotImplementedError


@dataclass(frozen=True)
class ByteTokenizer:
    """A token for each byte, and one that ends a turn; all completion tokens are trained."""

    def encode(self, example: Example) -> Tree:
        """See `protocols.Tokenizer`."""
        prompt = [token for message in example.prompt for token in _ids(message.content)]
        completions = tuple(np.array([t for turn in turns for t in _ids(turn.content)], np.int32) for turns in example.completions)
        return Tree(np.array(prompt, np.int32), completions, tuple(np.ones(len(ids), np.bool_) for ids in completions))

    def fingerprint(self) -> str:
        """See `protocols.Tokenizer`."""
        return "bytes"

    def render(self, example: Example) -> Sequence[str]:
        """See `protocols.Tokenizer`."""
        return ["\n".join(turn.content for turn in (*example.prompt, *turns)) for turns in example.completions]

    def pieces(self, ids: Sequence[int]) -> Sequence[str]:
        """See `protocols.Tokenizer`."""
        return ["\n" if token == END else chr(token) for token in ids]

    @property
    def ends(self) -> frozenset[int]:
        """See `protocols.Tokenizer`."""
        return frozenset({END})


@dataclass(frozen=True)
class TableBackend:
    """A `[model]` of bytes, another one for each seed."""

    seed: int = 0

    def problems(self, device: torch.device, *, start: Start) -> Sequence[str]:
        """See `protocols.Backend`."""
        return []

    def fingerprint(self) -> Mapping[str, Any]:
        """See `protocols.Backend`."""
        return {"table": self.seed}

    def scores_fingerprint(self, start: Start) -> Mapping[str, Any]:
        """See `protocols.Backend`."""
        return self.fingerprint()

    def max_length(self, start: Start) -> int | None:
        """See `protocols.Backend`."""
        return None

    def tokenizer(self, start: Start) -> ByteTokenizer:
        """See `protocols.Backend`."""
        return ByteTokenizer()

    def load(self, device: torch.device, *, start: Start, train: bool) -> TablePolicy:
        """See `protocols.Backend`."""
        return TablePolicy(vocabulary=NUM_BYTES + 1, seed=self.seed)

    def skeleton(self, start: Start) -> Skeleton:
        """Nobody plans for it."""
        raise NotImplementedError

    def leaner(self) -> Sequence[Leaner]:
        """See `protocols.Backend`."""
        return []

    def miniature(self, folder: Path) -> TableBackend:
        """It is small."""
        return self


def _ids(text: str) -> list[int]:
    return [*text.encode(), END]

"""Reference scores computed once, for objectives that compare with where the stage began."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zephyr_kit.batch import lay_out
from zephyr_kit.corpus import Corpus
from zephyr_kit.observe import Advance
from zephyr_kit.plan import Indices, pack
from zephyr_kit.protocols import Policy


@dataclass(frozen=True)
class ReferenceScores:
    """Log-probability under the reference of every target of a corpus, in a memory-mapped file."""

    path: Path
    corpus: Corpus

    def of(self, indices: Sequence[int]) -> Tensor:
        """The scores of these examples' targets, in the order in which `lay_out` lists them, (M,)."""
        return torch.from_numpy(np.concatenate([self._values[self._starts[i] : self._starts[i + 1]] for i in indices]))

    @cached_property
    def _values(self) -> np.ndarray:
        values: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return values

    @cached_property
    def _starts(self) -> Indices:
        return np.concatenate([[0], np.cumsum(self.corpus.num_targets)])


@torch.no_grad()
def score_corpus(
    policy: Policy, corpus: Corpus, path: Path, *, device: torch.device, capacity: int, share_prompts: bool, advance: Advance
) -> ReferenceScores:
    """Score a corpus with the policy as it is, into `path`; what is there already stands."""
    scores = ReferenceScores(path, corpus)
    if path.exists():
        return scores
    policy.module.eval()
    starts, values, done = scores._starts, None, 0
    for members in pack(range(len(corpus)), corpus.row_lengths(share_prompts=share_prompts), capacity):
        batch = lay_out([corpus[i] for i in members], share_prompts=share_prompts)
        logp_M = policy.score(batch.to(device)).cpu().numpy()
        if values is None:
            values = np.empty(int(starts[-1]), logp_M.dtype)
        for index, piece in zip(members, np.split(logp_M, np.cumsum(corpus.num_targets[members])[:-1]), strict=True):
            values[starts[index] : starts[index + 1]] = piece
        advance(done := done + len(members))
    _write(path, values)
    return scores


def _write(path: Path, values: np.ndarray | None) -> None:
    assert values is not None, "an empty corpus is refused before"
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with staging.open("wb") as file:
        np.save(file, values)
        file.flush()
        os.fsync(file.fileno())
    staging.rename(path)

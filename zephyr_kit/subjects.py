"""Models that are measured: what each is by content, where it began, and how it is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.answers import Answers
from zephyr_kit.devices import give_back_memory
from zephyr_kit.observe import Narrator
from zephyr_kit.protocols import Backend, Bench, Policy, Start, Tokenizer
from zephyr_kit.reference import scorer_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Subject:
    """A model that is measured. Called, it is loaded for as long as the context lasts."""

    backend: Backend
    start: Start
    device: torch.device
    answers: Answers
    """Where answers are kept by content."""
    narrator: Narrator
    before: Subject | None = None
    """The model that its training started from, and that its implicit reward is told from."""

    @contextmanager
    def __call__(self) -> Iterator[Policy]:
        give_back_memory()
        yield self.backend.load(self.device, start=self.start, train=False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its own, with its chat template."""
        return self.backend.tokenizer(self.start)

    @cached_property
    def scorer(self) -> Mapping[str, Any]:
        """JSON values that change whenever its log-probabilities would."""
        return scorer_of(self.backend, self.start)

    @cached_property
    def content(self) -> str:
        """Stands for what it says: weights, arithmetic, tokenizer and template."""
        told = json.dumps([self.scorer, self.tokenizer.fingerprint()], sort_keys=True)
        return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()

    @property
    def max_length(self) -> int | None:
        """How many positions it has; None if there is no limit."""
        return self.backend.max_length(self.start)

    @cached_property
    def bench(self) -> Bench:
        """What completers and judges are given: the device, the answers that are kept, and this model as their own."""
        return Bench(self.device, self.answers, self, self.content)


def lineage(base: Subject, stages: Sequence[tuple[str, Backend, Path]]) -> dict[str, Subject]:
    """The models of a run's stages, each started from the one before, the first from `base`: name, backend and folder of each."""
    found: dict[str, Subject] = {}
    last = base
    for name, backend, folder in stages:
        found[name] = last = replace(last, backend=backend, start=Start(folder, seed=base.start.seed), before=last)
    return found

"""Reference scores as a stage gets them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from zephyr_kit.observe import Advance
from zephyr_kit.protocols import Policy
from zephyr_kit.reference import ReferenceScores, Scoring
from zephyr_kit.score_store import ScoreStore
from zephyr_kit.world import World


class Listener:
    """A narrator that remembers what was said, and how far each piece of work came."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: dict[str, list[int]] = {}

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def track(self, label: str, total: int | None = None) -> Iterator[Advance]:
        yield self.steps.setdefault(label, []).append


def scored(
    policy: Policy,
    corpus: Any,
    cache: Path,
    *,
    scorer: str = "it",
    capacity: int = 1024,
    share_prompts: bool = True,
    narrator: Any = None,
    world: World | None = None,
) -> ReferenceScores:
    with closing(ScoreStore(cache, {"who": scorer}, "a test")) as store:
        scoring = Scoring(policy, store, torch.device("cpu"), capacity, share_prompts, narrator or Listener(), world or World())
        return scoring.scores_of(corpus, "data")

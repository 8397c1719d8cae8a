"""Reference scores computed once, for objectives that compare with where the stage began."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zephyr_kit.batch import Tree, idle, lay_out
from zephyr_kit.observe import Advance, Narrator
from zephyr_kit.plan import pack
from zephyr_kit.protocols import Backend, Policy, Start
from zephyr_kit.score_store import Kept, ScoreStore
from zephyr_kit.trees import Examples
from zephyr_kit.world import World

EXAMPLES_AT_ONCE = 256
"""Packed and kept together: a pass that is killed loses no more, and goes on with the same batches, to the same bits."""

Values = npt.NDArray[np.floating[Any]]
"""Log-probabilities of the targets of one completion."""
NOTHING: Values = np.empty(0, np.float32)


@dataclass(frozen=True)
class ReferenceScores:
    """Log-probability under the reference of every target of a corpus."""

    values: Mapping[bytes, Values]
    """Of each completion with targets, by its key."""
    keys: Sequence[Sequence[bytes]]
    """Of the completions of each example."""

    def of(self, indices: Sequence[int]) -> Tensor:
        """The scores of these examples' targets, in the order in which `lay_out` lists them, (M,)."""
        values = [self.values.get(key, NOTHING) for i in indices for key in self.keys[i]]
        return torch.from_numpy(np.concatenate(values or [NOTHING]))


@dataclass(frozen=True, slots=True)
class Missing:
    """Completions of one prompt that have no scores yet, and their keys."""

    tree: Tree
    keys: Sequence[bytes]


@dataclass(frozen=True)
class Scoring:
    """A policy as a stage finds it, and how its scores are computed and kept."""

    policy: Policy
    store: ScoreStore
    device: torch.device
    capacity: int
    share_prompts: bool
    narrator: Narrator
    world: World = field(default_factory=World)
    noun: str = "reference scores"
    """What the user is told that they are."""

    def scores_of(self, corpus: Examples, name: str) -> ReferenceScores:
        """The scores of a corpus: those that are known from before, and those of the rest, which are kept."""
        trees = (corpus[i] for i in range(len(corpus)))
        with self.narrator.track(f"looking for {self.noun} of {name}"):
            keys = [tuple(completion_keys(tree)) for tree in trees]
            wanted = dict.fromkeys(key for each in keys for key in each if key)
            values = {key: _array(kept) for key, kept in self._known(wanted).items()}
        num_missing = len(wanted) - len(values)
        self.narrator.say(f"{self.noun} of {name}: {len(values):,} completions known, {num_missing:,} to score")
        if num_missing:
            with self.narrator.track(f"{self.noun} of {name}", num_missing) as advance:
                self._score_missing(corpus, keys, values, advance)
        return ReferenceScores(values, keys)

    def _score_missing(self, corpus: Examples, keys: Sequence[Sequence[bytes]], values: dict[bytes, Values], advance: Advance) -> None:
        self.policy.module.eval()
        done = 0
        for first in range(0, len(keys), EXAMPLES_AT_ONCE):
            missing = list(_missing(corpus, keys, range(first, min(first + EXAMPLES_AT_ONCE, len(keys))), values))
            new: dict[bytes, Values] = {}
            lengths = [one.tree.row_length(share_prompts=self.share_prompts) for one in missing]
            packs = pack(range(len(missing)), lengths, self.capacity, multiple=self.world.num_teams)
            for turn in range(0, len(packs), self.world.num_teams):
                new |= self._score([[missing[i] for i in members] for members in packs[turn : turn + self.world.num_teams]])
                advance(done + len(new))
            if new:
                if self.world.leads:
                    # What is no number stops this run at its step; kept, it would stop every run after it.
                    self.store.put({key: (value.dtype.str, value.tobytes()) for key, value in new.items() if np.isfinite(value).all()})
                values.update(new)
                done += len(new)

    @torch.no_grad()
    def _score(self, packs: Sequence[Sequence[Missing]]) -> dict[bytes, Values]:
        """Every team scores one of the packs, and all learn the scores of all."""
        own = [one.tree for one in packs[self.world.own_team]]
        batch = lay_out(own, share_prompts=self.share_prompts) if own else idle()
        logp_M = self.policy.score(batch.to(self.device)).cpu()
        counts = [[int(is_target.sum()) for one in members for is_target in one.tree.targets] for members in packs]
        places = np.cumsum([0, *map(sum, counts)])
        # Sums with zeros, in the widest type, are exact.
        scores = torch.zeros(int(places[-1]), dtype=torch.float64)
        scores[places[self.world.own_team] : places[self.world.own_team + 1]] = logp_M
        found = self.world.total_of_teams(scores).to(logp_M.dtype).numpy()
        keys = [key for members in packs for one in members for key in one.keys]
        return dict(zip(keys, np.split(found, np.cumsum(list(itertools.chain.from_iterable(counts)))[:-1]), strict=True))

    def _known(self, keys: Mapping[bytes, Any]) -> dict[bytes, Kept]:
        """What every rank knows; machines may not share a cache, and all must score the same."""
        known = self.store.known(keys)
        if self.world.size == 1:
            return known
        knowing = self.world.total(torch.tensor([int(key in known) for key in keys])).tolist()
        return {key: known[key] for key, count in zip(keys, knowing, strict=True) if count == self.world.size}


def scorer_of(model: Backend, start: Start) -> dict[str, Any]:
    """What the scores of the model that a stage starts from depend on, besides the tokens."""
    return {"backend": f"{type(model).__module__}.{type(model).__qualname__}", **model.scores_fingerprint(start)}


def completion_keys(tree: Tree) -> Iterator[bytes]:
    """What stands for each completion: the prompt that it follows, its tokens, and which are trained; empty for one without targets."""
    prompt = hashlib.blake2b(len(tree.prompt).to_bytes(8, "little"), digest_size=16)
    prompt.update(tree.prompt.astype("<i4").tobytes())
    for ids, trained, is_target in zip(tree.completions, tree.trained, tree.targets, strict=True):
        content = prompt.copy()
        content.update(ids.astype("<i4").tobytes())
        content.update(trained.tobytes())
        yield content.digest() if is_target.any() else b""


def _missing(corpus: Examples, keys: Sequence[Sequence[bytes]], indices: Sequence[int], known: Container[bytes]) -> Iterator[Missing]:
    """What lacks scores in these examples, each completion once."""
    seen: set[bytes] = set()
    for index in indices:
        numbers = [n for n, key in enumerate(keys[index]) if key and key not in known and key not in seen]
        if numbers:
            tree = corpus[index]
            seen.update(keys[index])
            rest = Tree(tree.prompt, tuple(tree.completions[n] for n in numbers), tuple(tree.trained[n] for n in numbers))
            yield Missing(rest, [keys[index][n] for n in numbers])


def _array(kept: Kept) -> Values:
    dtype, values = kept
    return np.frombuffer(values, dtype)

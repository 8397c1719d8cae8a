"""Reference scores computed once, for objectives that compare with where the stage began."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.corpus import Corpus
from zephyr_kit.observe import Advance, Narrator
from zephyr_kit.plan import pack
from zephyr_kit.protocols import Backend, Policy, Start
from zephyr_kit.score_store import Kept, ScoreStore

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
        return torch.from_numpy(np.concatenate([self.values.get(key, NOTHING) for i in indices for key in self.keys[i]]))


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

    def scores_of(self, corpus: Corpus, name: str) -> ReferenceScores:
        """The scores of a corpus: those that are known from before, and those of the rest, which are kept."""
        trees = (corpus[i] for i in range(len(corpus)))
        with self.narrator.track(f"looking for reference scores of {name}"):
            keys = [tuple(completion_keys(tree)) for tree in trees]
            wanted = dict.fromkeys(key for each in keys for key in each if key)
            values = {key: _array(kept) for key, kept in self.store.known(wanted).items()}
        num_missing = len(wanted) - len(values)
        self.narrator.say(f"reference scores of {name}: {len(values):,} completions known, {num_missing:,} to score")
        if num_missing:
            with self.narrator.track(f"reference scores of {name}", num_missing) as advance:
                self._score_missing(corpus, keys, values, advance)
        return ReferenceScores(values, keys)

    def _score_missing(self, corpus: Corpus, keys: Sequence[Sequence[bytes]], values: dict[bytes, Values], advance: Advance) -> None:
        self.policy.module.eval()
        done = 0
        for first in range(0, len(keys), EXAMPLES_AT_ONCE):
            missing = list(_missing(corpus, keys, range(first, min(first + EXAMPLES_AT_ONCE, len(keys))), values))
            new: dict[bytes, Values] = {}
            for members in pack(range(len(missing)), [self._row_length(one.tree) for one in missing], self.capacity):
                new |= self._score([missing[i] for i in members])
                advance(done + len(new))
            if new:
                # What is no number stops this run at its step; kept, it would stop every run after it.
                self.store.put({key: (value.dtype.str, value.tobytes()) for key, value in new.items() if np.isfinite(value).all()})
                values.update(new)
                done += len(new)

    @torch.no_grad()
    def _score(self, missing: Sequence[Missing]) -> dict[bytes, Values]:
        batch = lay_out([one.tree for one in missing], share_prompts=self.share_prompts)
        counts = np.bincount(batch.sequence_M.numpy(), minlength=batch.num_sequences)
        logp_M = self.policy.score(batch.to(self.device)).cpu().numpy()
        keys = [key for one in missing for key in one.keys]
        return dict(zip(keys, np.split(logp_M, np.cumsum(counts)[:-1]), strict=True))

    def _row_length(self, tree: Tree) -> int:
        return tree.num_tokens + (0 if self.share_prompts else len(tree.prompt) * (len(tree.completions) - 1))


def scorer_of(model: Backend, start: Start) -> dict[str, Any]:
    """What the scores of the model that a stage starts from depend on, besides the tokens."""
    return {"backend": f"{type(model).__module__}.{type(model).__qualname__}", **model.scores_fingerprint(start)}


def completion_keys(tree: Tree) -> Iterator[bytes]:
    """What stands for each completion: the prompt that it follows, its tokens, and which are trained; empty for one without targets."""
    prompt = hashlib.blake2b(len(tree.prompt).to_bytes(8, "little"), digest_size=16)
    prompt.update(tree.prompt.astype("<i4").tobytes())
    for ids, trained in zip(tree.completions, tree.trained, strict=True):
        # Without a prompt, nothing comes before the first token from which it could be predicted.
        has_targets = (trained if len(tree.prompt) else trained[1:]).any()
        content = prompt.copy()
        content.update(ids.astype("<i4").tobytes())
        content.update(trained.tobytes())
        yield content.digest() if has_targets else b""


def _missing(corpus: Corpus, keys: Sequence[Sequence[bytes]], indices: Sequence[int], known: Container[bytes]) -> Iterator[Missing]:
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

"""What the data of a stage is like, measured after it was tokenised and before anything is trained on it.

Everything is measured when it is first asked for, over the memory-mapped arrays of the
corpus, so that a gate pays only for the thresholds that are set.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zephyr_kit.example import Example, ExampleError, check, completion_name

if TYPE_CHECKING:
    from zephyr_kit.corpus import Corpus
    from zephyr_kit.plan import Indices
    from zephyr_kit.portion import Portion
    from zephyr_kit.protocols import Tokenizer
    from zephyr_kit.sieve import Row

BLOCK = 1 << 22
"""Tokens looked at at once."""
NUM_ROWS_DECODED = 200
NUM_ROWS_LOOKED_AT = 2000
"""Among which those to decode are sought: all of the first ones may be bad."""
IDENTICAL = re.compile(r"(completions|chosen and rejected) are identical")
MORE_THAN_BLANKS = "decoding its tokens does not give back what the chat template wrote"
BLANKS = "decoding its tokens gives back what the chat template wrote, but for blanks"


@dataclass(frozen=True, slots=True)
class Fault:
    """A row, and what is wrong with it."""

    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class Part:
    """So many of so many."""

    count: int
    whole: int
    what: str
    """What they are, as in `3 of 100 WHAT`."""

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.count / self.whole if self.whole else 0.0

    @property
    def told(self) -> str:
        """In words."""
        return f"{self.count:,} of {self.whole:,} {self.what} ({self.share:.2%})"


@dataclass(frozen=True)
class Inspection:
    """The measures of a corpus; each share that a gate can limit is a `Part` under the name that the gate gives it."""

    corpus: Corpus
    tokenizer: Tokenizer
    portions: Sequence[Portion]
    """What the corpus was made of: the first rows are encoded once more, and decoded."""

    @property
    def truncated(self) -> Part:
        """Examples that were cut."""
        return Part(self._ledger["cut"], self._ledger["kept"], "kept examples are cut to max_length")

    @property
    def num_examples(self) -> int:
        """What there was to keep: the rows read, and the examples beyond the first that binarisation made of some."""
        return int(self._ledger["read"] + self._ledger.get("added", 0))

    @property
    def dropped(self) -> Part:
        """Examples dropped for their length."""
        return Part(self._ledger["dropped"], self.num_examples, "examples are dropped for their length")

    @property
    def removed(self) -> Part:
        """Rows that filters or binarisation took out, each before an example was made of it."""
        return Part(self._ledger.get("removed", 0), self._ledger["read"], "rows are removed by filters or binarisation")

    @property
    def bad(self) -> Part:
        """Examples that cannot be trained on, and rows from which none can be made."""
        return Part(self._ledger["bad"], self.num_examples, "examples are bad")

    @property
    def identical(self) -> Part:
        """Examples whose completions are the same, whatever became of them."""
        count = sum(count for reason, count in self._ledger["reasons"].items() if IDENTICAL.search(reason))
        return Part(count, self.num_examples, "examples have identical completions")

    @property
    def examples(self) -> Part:
        """Examples to train on."""
        return Part(self._ledger["kept"], self.num_examples, "examples are kept")

    @property
    def trained(self) -> Part:
        """Tokens that are trained."""
        return Part(self._ledger["trained"], self._ledger["tokens"], "tokens are trained")

    @cached_property
    def duplicates(self) -> Part:
        """Examples that equal an earlier one in every token."""
        return Part(int((self._first_alike != np.arange(len(self.corpus))).sum()), len(self.corpus), "examples equal an earlier one")

    @cached_property
    def ended(self) -> Part:
        """Completions whose last trained token ends a reply."""
        return Part(int(self._is_ended.sum()), len(self._is_ended), "completions are trained to end")

    @cached_property
    def altered(self) -> Part:
        """Of the first examples, those whose tokens do not decode to what was encoded."""
        return Part(sum(trip.reason != "" for trip in self.trips), len(self.trips), "examples looked at do not decode to what was encoded")

    def leaked(self, held_out: Inspection) -> Part:
        """Held-out examples that are also in this corpus, token for token."""
        known = np.isin(held_out.digests, self.digests)
        return Part(int(known.sum()), len(known), "held-out examples are also trained on")

    def faults(self, name: str, *, least: float = 1.0) -> Iterator[Fault]:
        """The rows that `name` counts, or that lack what it counts; of `trained`, those with a share below `least`."""
        if name in ("truncated", "dropped", "removed"):
            fate = {"truncated": "cut"}.get(name, name)
            return (fault for found, fault in self._quarantined() if found == fate)
        if name == "identical":
            return (fault for _, fault in self._quarantined() if IDENTICAL.search(fault.reason))
        origins = self.corpus.origins
        if name == "duplicates":
            alike = enumerate(self._first_alike.tolist())
            return (Fault(origins[index], f"the same as {origins[first]}") for index, first in alike if index != first)
        if name == "ended":
            return (self._unended(int(number)) for number in np.flatnonzero(~self._is_ended))
        if name == "altered":
            return (trip for trip in self.trips if trip.reason)
        return self._little_trained(least) if name == "trained" else iter(())

    @cached_property
    def lengths(self) -> dict[str, Indices]:
        """Tokens of each example: its prompt, its completions, the prompt with the longest of these, and those that are trained."""
        size, first = np.diff(self._ends), self._first
        prompt = size[first]
        widest = int(self.num_completions.max(initial=0))
        columns, longest = {"prompt": prompt}, np.zeros(len(first), np.int64)
        for number in range(widest):
            there = self.num_completions > number
            completion = size[first[there] + 1 + number]
            columns[completion_name(number, widest).removeprefix("the ")] = completion
            longest[there] = np.maximum(longest[there], completion)
        return {**columns, "whole": prompt + longest, "trained": self.corpus.num_targets}

    @cached_property
    def num_completions(self) -> Indices:
        """Completions of each example."""
        counts: Indices = np.diff(np.append(self._first, len(self._ends) - 1)) - 1
        return counts

    @property
    def chosen_longer(self) -> Part | None:
        """Pairs whose chosen completion is the longer one; None where the examples are no pairs."""
        if "chosen" not in self.lengths:
            return None
        longer = self.lengths["chosen"] > self.lengths["rejected"]
        return Part(int(longer.sum()), len(longer), "chosen completions are longer than the rejected")

    @property
    def shared(self) -> Part:
        """Tokens that need not be computed when a prompt is computed once for all its completions."""
        apart = int(self.corpus.row_lengths(share_prompts=False).sum())
        return Part(apart - int(self.corpus.lengths.sum()), apart, "tokens are saved by sharing prompts")

    @cached_property
    def digests(self) -> npt.NDArray[np.uint64]:
        """Of each example's tokens, and of where its prompt and completions part: 8 bytes each."""
        tokens, ends, bounds = self.corpus.tokens, self._ends, [*self._first.tolist(), len(self._ends) - 1]
        found = np.empty(len(self._first), np.uint64)
        for index, (first, last) in enumerate(itertools.pairwise(bounds)):
            cuts = ends[first : last + 1]
            content = (cuts - cuts[0]).tobytes() + tokens[cuts[0] : cuts[-1]].tobytes()
            found[index] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
        return found

    @cached_property
    def trips(self) -> list[Fault]:
        """The first examples, encoded and decoded again: where each stood, and what differs, if anything does."""
        rows = ((portion, row, number) for portion in self.portions for number, row in enumerate(portion.rows()))
        looked_at = itertools.islice(rows, NUM_ROWS_LOOKED_AT)
        examples = (example for portion, row, number in looked_at for example in _examples(portion, row, number))
        trips = (_trip(self.tokenizer, example) for example in examples)
        return list(itertools.islice((trip for trip in trips if trip is not None), NUM_ROWS_DECODED))

    @property
    def _ledger(self) -> dict[str, Any]:
        return self.corpus.ledger

    @cached_property
    def _ends(self) -> Indices:
        return np.asarray(self.corpus.ends)

    @cached_property
    def _first(self) -> Indices:
        return np.asarray(self.corpus.first)

    @cached_property
    def _first_alike(self) -> Indices:
        """For each example, the first one that equals it."""
        _, first, number = np.unique(self.digests, return_index=True, return_inverse=True)
        alike: Indices = first[number]
        return alike

    @cached_property
    def _is_ended(self) -> npt.NDArray[np.bool_]:
        """For each completion, whether its last trained token ends a reply."""
        ends = np.array(sorted(self.tokenizer.ends), np.int32)
        is_prompt = np.zeros(len(self._ends) - 1, np.bool_)
        is_prompt[self._first] = True
        starts, stops = self._ends[:-1][~is_prompt], self._ends[1:][~is_prompt]
        found = [np.zeros(0, np.bool_)]
        at = 0
        while at < len(starts):
            until = max(at + 1, int(np.searchsorted(stops, starts[at] + BLOCK)))
            block = slice(int(starts[at]), int(stops[until - 1]))
            trained = np.where(self.corpus.trained[block], np.arange(block.stop - block.start), -1)
            # What lies between two completions is the next one's prompt, of which nothing is trained.
            last = np.maximum.reduceat(trained, starts[at:until] - block.start)
            found.append(np.isin(self.corpus.tokens[block][last], ends) & (last >= 0))
            at = until
        return np.concatenate(found)

    def _unended(self, number: int) -> Fault:
        after = np.cumsum(self.num_completions)
        index = int(np.searchsorted(after, number, side="right"))
        count = int(self.num_completions[index])
        name = completion_name(number - int(after[index]) + count, count)
        return Fault(self.corpus.origins[index], f"{name} is not trained to end")

    def _little_trained(self, least: float) -> Iterator[Fault]:
        """The worst first."""
        trained, tokens = self.corpus.num_targets, self.corpus.lengths
        share = trained / tokens
        for index in np.argsort(share, kind="stable")[: int((share < least).sum())]:
            yield Fault(self.corpus.origins[index], f"{trained[index]:,} of {tokens[index]:,} tokens are trained")

    def _quarantined(self) -> Iterator[tuple[str, Fault]]:
        return ((row["fate"], Fault(row["origin"], row["reason"])) for row in self.corpus.quarantined())


def _examples(portion: Portion, row: Row, number: int) -> Sequence[Example]:
    """What is made of a row, as a corpus has it; nothing of one that is no example."""
    if not isinstance(row, Example):
        return ()
    if portion.binarise is None:
        return (row,)
    try:
        return portion.binarise.apply(row, number).examples
    except ExampleError:
        return ()


def _trip(tokenizer: Tokenizer, example: Example) -> Fault | None:
    """An example encoded and decoded again; None for one that cannot be encoded."""
    try:
        check(example)
        texts, tree = tokenizer.render(example), tokenizer.encode(example)
    except ExampleError:
        return None
    decoded = ["".join(tokenizer.pieces([*tree.prompt.tolist(), *ids.tolist()])) for ids in tree.completions]
    if decoded == list(texts):
        return Fault(example.origin, "")
    alike = [re.sub(r"\s", "", text) for text in decoded] == [re.sub(r"\s", "", text) for text in texts]
    return Fault(example.origin, BLANKS if alike else MORE_THAN_BLANKS)

"""Examples tokenised once into memory-mapped arrays, with a ledger of every row.

A corpus is a folder: `tokens.npy` and `trained.npy` hold all pieces end to end, `ends.npy`
where each piece ends, `ratings.npy` the score of each (NaN: none), `first.npy` which piece is
each example's prompt (its completions follow), `origins.txt` where each example stood,
`ledger.json` what became of every row, with checksums of all files and of itself, and
`quarantine.jsonl` the rows that were not taken whole, each with its reason. Files that hold the
same have one corpus, in which marks stand for them (`zephyr_kit.places`): `Corpus` tells their names.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zephyr_kit import ZkitError
from zephyr_kit.admission import Door
from zephyr_kit.batch import Flags, Ids, Tree
from zephyr_kit.cache import used
from zephyr_kit.corpus_files import LEDGER, MEND, read_ledger, verify, write_corpus
from zephyr_kit.disk import put, staging_folder
from zephyr_kit.exits import Exit
from zephyr_kit.observe import Advance
from zephyr_kit.places import Places
from zephyr_kit.plan import Indices
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import Tokenizer
from zephyr_kit.records import DamagedError

FORMAT = 8
"""Part of every key: a corpus of another format is made anew."""
NUM_REASONS_TOLD = 10

Track = Callable[[str], AbstractContextManager[Advance]]
"""Told that a part of the work begins, and then how many rows are done."""


class DataError(ZkitError):
    """Data that cannot be trained on; the message names the first rows at fault."""

    exit = Exit.BAD_DATA


@dataclass(frozen=True)
class Corpus:
    """Examples by index."""

    folder: Path
    places: Places = field(default_factory=Places)
    portions: Sequence[Mapping[str, Any]] = ()
    """Where the rows of this run come from."""

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> Tree:
        first = int(self.first[index])
        end = int(self.first[index + 1]) if index + 1 < len(self.first) else len(self.ends) - 1
        spans = [slice(int(self.ends[piece]), int(self.ends[piece + 1])) for piece in range(first, end)]
        prompt, *completions = spans
        ratings = tuple(self.ratings[first + 1 : end].tolist())
        return Tree(self.tokens[prompt], tuple(self.tokens[s] for s in completions), tuple(self.trained[s] for s in completions), ratings)

    @cached_property
    def lengths(self) -> Indices:
        """Tokens of each example, its prompt counted once."""
        cuts = np.append(self.ends[self.first], self.ends[-1])
        return np.diff(cuts).astype(np.int64)

    def row_lengths(self, *, share_prompts: bool) -> Indices:
        """Tokens that each example takes in a row."""
        prompts = self.ends[self.first + 1] - self.ends[self.first]
        repeats = np.diff(np.append(self.first, len(self.ends) - 1)) - 2
        return self.lengths if share_prompts else self.lengths + prompts * repeats

    @cached_property
    def num_targets(self) -> Indices:
        """Trained tokens of each example."""
        trained, cuts = self.trained, np.append(self.ends[self.first], self.ends[-1])
        # Not `add.reduceat`, which takes seconds for what this does in a tenth of one.
        return np.array([np.count_nonzero(trained[start:end]) for start, end in itertools.pairwise(cuts.tolist())], np.int64)

    @cached_property
    def ledger(self) -> dict[str, Any]:
        """What became of every row that was read."""
        facts: dict[str, Any] = self.places.told(read_ledger(self.folder))
        del facts["files"]
        portions = [{**told, **kept} for told, kept in zip(self.portions, facts["portions"], strict=False)]
        return {**facts, "portions": portions}

    def quarantined(self) -> Iterator[dict[str, Any]]:
        """The rows that were not taken whole: `origin`, `fate` and `reason` of each."""
        with (self.folder / "quarantine.jsonl").open(encoding="utf-8") as file:
            yield from (self.places.told(json.loads(line)) for line in file)

    @cached_property
    def origins(self) -> list[str]:
        """Where each example stood, as `file:line`."""
        text: str = self.places.told((self.folder / "origins.txt").read_text("utf-8"))
        return text.split("\n")[:-1]

    @cached_property
    def tokens(self) -> Ids:
        """All pieces end to end."""
        return self._array("tokens")

    @cached_property
    def trained(self) -> Flags:
        """Whether each token is trained."""
        return self._array("trained")

    @cached_property
    def ends(self) -> Indices:
        """Where each piece ends; 0 comes first."""
        return self._array("ends")

    @cached_property
    def ratings(self) -> npt.NDArray[np.float32]:
        """What the data says of each piece."""
        return self._array("ratings")

    @cached_property
    def first(self) -> Indices:
        """Which piece is each example's prompt."""
        return self._array("first")

    def _array(self, name: str) -> npt.NDArray[Any]:
        file = self.folder / f"{name}.npy"
        try:
            array: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DamagedError(f"{file}: damaged (no whole array); {MEND}") from error
        return array


def corpus_key(portions: Sequence[Portion], tokenizer: Tokenizer, door: Door) -> str:
    """The name of the corpus that these make: equal if and only if all is that its content depends on."""
    parts = [portion.fingerprint() for portion in portions]
    content = [FORMAT, parts, tokenizer.fingerprint(), door.completions, door.max_length, door.too_long, door.rated]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def prepare(
    portions: Sequence[Portion],
    tokenizer: Tokenizer,
    door: Door,
    *,
    cache: Path,
    track: Track | None = None,
) -> Corpus:
    """The corpus of these rows: from the cache if it is there, else sifted, binarised and tokenised into it.

    `track` is entered with the name of each part of the work, and told how many rows have come.
    """
    folder = cache / corpus_key(portions, tokenizer, door)
    places = Places.joined([portion.places for portion in portions])
    if is_prepared(folder):
        verify(folder)
    else:
        enter = track or (lambda _: nullcontext(lambda _: None))
        _sift(portions, enter)
        staging = staging_folder(folder)
        try:
            with enter("tokenising") as advance, places.telling():
                write_corpus(staging, portions, tokenizer, door, advance)
            _put(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    used(folder / LEDGER)
    return Corpus(folder, places, [portion.facts() for portion in portions])


def is_prepared(folder: Path) -> bool:
    """Whether the corpus of this name is there."""
    return (folder / LEDGER).exists()


def refuse_bad_rows(corpus: Corpus, *, allowed: float, name: str, quarantine: Path | None = None) -> None:
    """Stop when more than the allowed share of rows was bad, or nothing is left; `quarantine` is where they are listed."""
    refuse_ledger(corpus.ledger, allowed=allowed, name=name, quarantine=quarantine)


def refuse_ledger(ledger: Mapping[str, Any], *, allowed: float, name: str, quarantine: Path | None) -> None:
    """The same of rows that are counted in a ledger."""
    read, bad = ledger["read"] + ledger["added"], ledger["bad"]
    noun = "examples" if ledger["added"] else "rows"
    if not read:
        raise DataError(f"{name}: the data has no rows")
    if bad > allowed * read:
        told = f"{bad:,} of {read:,} {noun} are bad ({bad / read:.2%}), more than bad_rows = {allowed} allows"
        kinds, mend = ledger["bad_reasons"], "mend them, or allow more with bad_rows"
    elif not ledger["kept"]:
        ways = "max_length, too_long, filters or binarise" if ledger["removed"] else "max_length or too_long"
        told, mend = f"none of {read:,} {noun} is left to train on", f"mend them, or set another {ways}"
        kinds = ledger["reasons"]
    else:
        return
    reasons = [f"  {count:6,d} x {reason}" for reason, count in itertools.islice(kinds.items(), NUM_REASONS_TOLD)]
    if len(kinds) > NUM_REASONS_TOLD:
        reasons.append(f"  and {len(kinds) - NUM_REASONS_TOLD:,} more reasons")
    first = ["the first bad ones:", *(f"  {line}" for line in ledger["first_bad"])] if ledger["first_bad"] else []
    listed = f"all are in {quarantine}; " if quarantine else ""
    raise DataError("\n".join([f"{name}: {told}:", *reasons, *first, f"{listed}{mend}"]))


def _sift(portions: Sequence[Portion], track: Track) -> None:
    """All of it before the first row is tokenised, so that workers of one kind are not in the way of the other's."""
    for portion in portions:
        if portion.filters:
            with track("filtering") as advance:
                portion.sift(on_rows=advance)


def _put(staging: Path, folder: Path) -> None:
    """Move the finished corpus into place; another process may have made the same one meanwhile."""
    try:
        put(staging, folder)
    except OSError:
        if not (folder / LEDGER).exists():
            raise

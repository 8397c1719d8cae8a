"""Rows that a stage has gathered, as the data of a later one.

A line of JSON for each row: `{prompt, chosen, rejected, score_chosen, score_rejected}` for a pair,
`{prompt, completions, scores}` for one completion or a ranking, `{messages}` for a dialogue whose first
`num_given` messages were given; prompts and completions are lists of `{role, content}`. What else a line
holds tells where it came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from zephyr_kit import ZkitError
from zephyr_kit.example import Example, Message
from zephyr_kit.fingerprint import file_fingerprint
from zephyr_kit.portion import Portion
from zephyr_kit.records import DamagedError

Part = Literal["train", "held_out"]
NOT_YET = "not gathered yet"
"""What stands for rows whose stage has not ended."""


@dataclass(frozen=True)
class StageRows:
    """The rows that an earlier stage of the same preset has gathered."""

    name: str
    """The stage."""
    part: Part = "train"

    def within(self, run: Path) -> GatheredRows:
        """The rows in the folder of a run."""
        return GatheredRows(self.name, run / self.name / "data" / f"{self.part}.jsonl")

    def rows(self) -> Iterator[Example]:
        raise ZkitError(f"the rows of stage {self.name} are there only within a run")

    def fingerprint(self) -> str:
        return f"stage {self.name}: {self.part}"

    def problems(self) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> StageRows:
        return self


@dataclass(frozen=True)
class GatheredRows:
    """A file that a stage has written, or is yet to write."""

    stage: str
    path: Path

    @property
    def is_there(self) -> bool:
        """Whether the stage has written it."""
        return self.path.exists()

    def rows(self) -> Iterator[Example]:
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = read_row(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise DamagedError(f"{self.path}:{number}: damaged ({error}); {self._mend}") from error
                yield replace(row, origin=f"{self.path}:{number}")

    @property
    def _mend(self) -> str:
        return f"remove {self.path.parent}, and the same command gathers the rows again, from the answers that are kept"

    def fingerprint(self) -> str:
        return f"gathered {file_fingerprint(self.path)}" if self.is_there else NOT_YET

    def places(self) -> Sequence[str]:
        return [str(self.path)]

    def problems(self) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> GatheredRows:
        return self


def within(portions: Sequence[Portion], run: Path) -> tuple[Portion, ...]:
    """The portions, with rows of stages taken from the folder of a run."""
    bound = (p.source.within(run) if isinstance(p.source, StageRows) else p.source for p in portions)
    return tuple(replace(portion, source=source) for portion, source in zip(portions, bound, strict=True))


def portions_in(table: object) -> dict[str, tuple[Portion, ...]]:
    """The rows that an offer's own table names, by key."""
    assert is_dataclass(table)
    values = {f.name: getattr(table, f.name) for f in fields(table)}
    return {key: value for key, value in values.items() if isinstance(value, tuple) and value and isinstance(value[0], Portion)}


def are_there(portions: Sequence[Portion]) -> bool:
    """Whether all rows can be read already."""
    return all(portion.source.is_there for portion in portions if isinstance(portion.source, GatheredRows))


def gathered_by(portions: Sequence[Portion]) -> set[str]:
    """The stages whose rows are among them."""
    return {portion.source.stage for portion in portions if isinstance(portion.source, GatheredRows)}


def read_row(row: Mapping[str, Any]) -> Example:
    """A line as an example."""
    if "messages" in row:
        turns, given = read_turns(row["messages"]), row["num_given"]
        return Example(turns[:given], (turns[given:],))
    if "chosen" in row:
        pair = (read_turns(row["chosen"]), read_turns(row["rejected"]))
        return Example(read_turns(row["prompt"]), pair, (row["score_chosen"], row["score_rejected"]))
    return Example(read_turns(row["prompt"]), tuple(map(read_turns, row["completions"])), tuple(row["scores"]))


def write_row(example: Example) -> dict[str, Any]:
    """An example as a line, in the shape of the public data sets of its kind."""
    completions = [write_turns(completion) for completion in example.completions]
    scores = list(example.scores or ())
    if len(completions) == 2:
        named = {"chosen": completions[0], "rejected": completions[1]}
        return {"prompt": write_turns(example.prompt), **named, "score_chosen": scores[0], "score_rejected": scores[1]}
    return {"prompt": write_turns(example.prompt), "completions": completions, "scores": scores}


def read_turns(turns: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    """Messages from their JSON."""
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def write_turns(turns: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as JSON."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]

"""What a stage depends on, compared with what it was begun with."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.config import PresetError, did_you_mean
from zephyr_kit.exits import Exit
from zephyr_kit.gathered import NOT_YET

ALL = "all"
NUM_FILES = 5
"""That are told of."""
WIDTH = 40
"""Of a column, in characters."""


class ChangedInputs(ZkitError):
    """A run whose inputs are not what it was begun with."""

    exit = Exit.CHANGED


@dataclass(frozen=True, slots=True)
class Change:
    """One input, under the name that a preset has for it."""

    name: str
    was: str
    now: str

    def is_accepted(self, accepted: Sequence[str]) -> bool:
        """Whether it, or a table that it stands in, is among these names."""
        return any(name in (ALL, self.name) or self.name.startswith((f"{name}.", f"{name}[")) for name in accepted)


def changes(stage: str, before: Mapping[str, Any], now: Mapping[str, Any], own: AbstractSet[str] = frozenset()) -> list[Change]:
    """Where two keys of a stage differ; `own` are the keys of `[model]` that the stage sets itself."""
    found = {_name(stage, path, own): (was, is_) for path, was, is_ in _differing(before, now) if not _is_to_come(is_)}
    if any(name.startswith(("model.", f"stages.{stage}.model.")) for name in found):
        found.pop(f"stages.{stage}.tokenizer", None)  # which is made from the model's files and template
    return [Change(name, *_columns(was, is_)) for name, (was, is_) in found.items()]


def files_differing(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which files, each with a digest, hold what they did not; empty if none does, wherever they have moved."""
    fates = {
        "has changed": [file for file in now if file in before and before[file] != now[file]],
        "is new": [file for file in now if file not in before and now[file] not in before.values()],
        "is gone": [file for file in before if file not in now and before[file] not in now.values()],
    }
    told = [f"{file} {fate}" for fate, files in fates.items() for file in files]
    return ", ".join(told[:NUM_FILES]) + (f" and {len(told) - NUM_FILES:,} more" if len(told) > NUM_FILES else "")


def names(stage: str, key: Mapping[str, Any], own: AbstractSet[str] = frozenset()) -> set[str]:
    """What the inputs of a stage are called."""
    return {_name(stage, path, own) for path in _leaves(key)}


def refuse_unknown(accepted: Sequence[str], known: AbstractSet[str]) -> None:
    """Raise for what is to be accepted and is the name of no input, nor of a table with any."""
    for name in accepted:
        if not any(Change(each, "", "").is_accepted([name]) for each in known):
            near = did_you_mean(name, known) or f"; they have the names of the preset, as {min(known)}, and {ALL} is all of them"
            raise PresetError(f"--accept {name}: no input of the run has that name{near}")


def refuse(found: Sequence[Change], accepted: Sequence[str]) -> None:
    """Raise with all changes side by side, unless every one is accepted."""
    refused = [change for change in found if not change.is_accepted(accepted)]
    if not refused:
        return
    width = max(len(change.name) for change in found)
    row = f"  {{:{width}}}  {{:{WIDTH}}}  {{}}"
    lines = [row.format(change.name, change.was, change.now) for change in found]
    accept = " ".join(f"--accept {shlex.quote(change.name)}" for change in refused)
    advice = (
        f"to go on with what it is now, add  {accept}  (or --accept {ALL}): what was made before is kept under superseded/\n"
        "to go on with what it was, undo the change; to have both, give another --output"
    )
    raise ChangedInputs("\n".join(["this run was begun with other inputs:", row.format("", "was", "is"), *lines, advice]))


def _is_to_come(value: Any) -> bool:
    """Rows that a stage before this one has yet to gather: whether they will be others cannot be known."""
    return isinstance(value, list) and NOT_YET in value


def _leaves(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key], f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and "[" not in path:
        for number, each in enumerate(value):
            yield from _leaves(each, f"{path}[{number}]")
    else:
        yield path


def _differing(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _differing(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now) and path.count("[") == 0:
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differing(old, new, f"{path}[{number}]")
    elif before != now:
        yield path, before, now


def _name(stage: str, path: str, own: AbstractSet[str]) -> str:
    """What a preset calls it: `settings.objective.beta` is `stages.dpo.objective.beta`."""
    if path == "seed":
        return path
    root, _, rest = path.partition(".")
    if root == "settings":
        return f"stages.{stage}.{rest}"
    if root == "model":
        # The files of a folder of weights are one input.
        key = re.split(r"[.\[]", rest)[0]
        rest = key if key == "weights" else rest
        return f"stages.{stage}.model.{rest}" if key in own else f"model.{rest}"
    return f"stages.{stage}.{path}"


def _columns(was: Any, now: Any) -> tuple[str, str]:
    """Both values in the room there is; of long ones, from where they begin to differ."""
    texts = ["–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in (was, now)]
    if max(map(len, texts)) <= WIDTH:
        return texts[0], texts[1]
    same = next((n for n, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), min(map(len, texts)))
    start = max(0, same - WIDTH // 4)
    return _cut(texts[0], start), _cut(texts[1], start)


def _cut(text: str, start: int) -> str:
    end = start + WIDTH - 2
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"

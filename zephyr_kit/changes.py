"""Changes to a preset from the command line: `--set path.to.key=value`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, time
from typing import Any

from zephyr_kit.config import USE, PresetError, suggest

COMMAND_LINE = "command line"
FORMS = {"--set": "path.to.key=value, as in stages.dpo.objective.beta=0.05", "--option": "key=value, as in partition=gpu"}
"""How a change is written, by the option that it is given with."""
PATH = re.compile(r"[^.\[\]\s]+(\.[^.\[\]\s]+|\[\d+\])*")
STEP = re.compile(r"\[\d+\]|[^.\[\]]+")


def apply_changes(
    table: Mapping[str, Any], changes: Iterable[str], file: str, *, option: str = "--set"
) -> tuple[dict[str, Any], dict[str, str]]:
    """The table with each `path.to.key=value` set, and the origin of every path that was."""
    changed, origins = _copy(table), {}
    for change in changes:
        path, equals, text = (part.strip() for part in change.partition("="))
        if not equals or not PATH.fullmatch(path):
            raise PresetError(f"{option} {change}: write it as {FORMS.get(option, 'key=value')}")
        try:
            _set(changed, path, _value(text))
        except LookupError as error:
            raise PresetError(f"{file}: {option} {change}: {error.args[0]}") from error
        origins[path] = COMMAND_LINE
    return changed, origins


def _value(text: str) -> Any:
    """A TOML value, or else the text itself: `--set model.weights=org/name` needs no quotes."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed.pop("value")
    # No key of a preset takes a date, but a revision may look like one.
    return text if parsed or isinstance(value, (date, time)) else value


def _set(table: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path, making tables on the way; a LookupError says what is in the way."""
    *way, last = [int(step[1:-1]) if step.startswith("[") else step for step in STEP.findall(path)]
    if way == ["stages"] and isinstance(value, bool):
        return _keep_stage(table, last, kept=value)
    _refuse_new_stage(table, [*way, last])
    place: Any = table
    so_far = ""
    for step in way:
        place, so_far = _enter(place, step, so_far)
    _check_step(place, last, so_far)
    place[last] = value
    return None


def _keep_stage(table: dict[str, Any], name: str | int, *, kept: bool) -> None:
    """`stages.sft=false` leaves a stage out; `true`, which a sweep has beside it, leaves it as it is."""
    _refuse_new_stage(table, ["stages", name, ""])
    if not kept:
        del table["stages"][name]


def _enter(place: Any, step: str | int, so_far: str) -> tuple[Any, str]:
    """The table or list one step further in: made if missing, spelt out if it is the name of an offer."""
    _check_step(place, step, so_far)
    if isinstance(step, str):
        place.setdefault(step, {})
    if isinstance(place[step], str):
        place[step] = {USE: place[step]}
    return place[step], f"{so_far}[{step}]" if isinstance(step, int) else f"{so_far}.{step}".removeprefix(".")


def _check_step(place: Any, step: str | int, so_far: str) -> None:
    obstacle = ""
    if isinstance(step, int) and not isinstance(place, list):
        obstacle = f"{so_far} is no list, so there is no {so_far}[{step}]"
    elif isinstance(step, int) and step >= len(place):
        obstacle = f"there is no {so_far}[{step}]; the list has {len(place)}, counted from 0"
    elif isinstance(step, str) and isinstance(place, list):
        obstacle = f"{so_far} is a list; say which of it, as in {so_far}[0]"
    elif isinstance(step, str) and not isinstance(place, dict):
        obstacle = f"{so_far} is {place!r}, not a table"
    if obstacle:
        raise LookupError(obstacle)


def _refuse_new_stage(table: Mapping[str, Any], steps: list[str | int]) -> None:
    """A key of a stage that is not there is a misspelt stage, not a new one."""
    stages = table.get("stages")
    if steps[0] == "stages" and len(steps) > 2 and isinstance(stages, dict) and steps[1] not in stages:
        raise LookupError(f"there is no stage `{steps[1]}`{suggest(str(steps[1]), stages)}")


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(element) for key, element in value.items()}
    return [_copy(element) for element in value] if isinstance(value, list) else value

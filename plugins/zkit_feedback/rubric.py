"""Rubrics: what a judge is to look at, and what each grade means, as TOML files."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from zephyr_kit.config import Builder, PresetError, suggest

OVERALL = "overall"


@dataclass(frozen=True, slots=True)
class Aspect:
    """One thing to grade, from 1 to the number of grades."""

    question: str
    """What to look at."""
    grades: tuple[str, ...]
    """What each grade means, the worst first."""
    name: str = OVERALL
    not_applicable: str | None = None
    """When there is nothing to grade; without it, there always is."""

    def __post_init__(self) -> None:
        if len(self.grades) < 2:
            raise ValueError("`grades` should say what each grade means, from 1 up, and there are at least two")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"`name` = {json.dumps(self.name)}: should be small letters, digits and _, a letter first")

    @property
    def best(self) -> int:
        """The highest grade."""
        return len(self.grades)


@dataclass(frozen=True, slots=True)
class Rubric:
    """Aspects to grade one by one, and what to grade as a whole."""

    aspects: tuple[Aspect, ...] = ()
    overall: Aspect | None = None

    def __post_init__(self) -> None:
        names = [aspect.name for aspect in self.asked]
        if not names:
            raise ValueError("needs [[aspects]], or [overall], or both")
        if self.overall is not None and self.overall.name != OVERALL:
            raise ValueError(f"overall.name is {OVERALL!r}; leave it out")
        if OVERALL in [aspect.name for aspect in self.aspects] or len(set(names)) < len(names):
            raise ValueError(f"each of [[aspects]] needs a `name` of its own, other than {OVERALL!r}")

    @property
    def asked(self) -> tuple[Aspect, ...]:
        """Everything to grade, the whole last."""
        return self.aspects if self.overall is None else (*self.aspects, self.overall)


def known_rubrics() -> list[str]:
    """The names of the rubrics that are at hand."""
    return sorted(file.stem for file in _folder().glob("*.toml"))


def check_name(name: str) -> None:
    """Refuse what is neither a rubric at hand nor a file's name."""
    if name not in known_rubrics() and not name.endswith(".toml"):
        raise ValueError(f"`rubric` = {json.dumps(name)}: no such rubric, and no file ending in .toml{suggest(name, known_rubrics())}")


def read_rubric(name: str) -> Rubric:
    """A rubric at hand, or one from a file; raises PresetError, naming file, table and key."""
    file = _folder() / f"{name}.toml" if name in known_rubrics() else Path(name).expanduser()
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise PresetError(f"{file.absolute()}: the rubric cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PresetError(f"{file}: not a TOML file: {error}") from error
    rubric: Rubric = Builder({}, str(file)).build(Rubric, table, "")
    return rubric


def _folder() -> Path:
    return Path(__file__).parent / "rubrics"

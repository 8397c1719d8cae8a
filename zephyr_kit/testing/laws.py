"""What a law is: a method that says what the engine relies on, and fails where a plugin does not do so.

Laws run under pytest, by inheritance, and without it, by `zkit plugin check`. So they are plain
methods with asserts, and take nothing but `tmp_path`, an empty folder.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zephyr_kit.config import suggest
from zephyr_kit.protocols import broken_laws

TEST = "test_"
WITHOUT = "Without it, "


class DoesNotApply(Exception):
    """Raised by a law that asks nothing of this plugin; the message says why."""


class Laws:
    """What all laws share: their subject, the figures that they leave, and the laws that the subject breaks in the open."""

    subject: ClassVar[str] = ""
    """The attribute that holds what is tried."""
    title: ClassVar[str] = ""
    """What these are the laws of."""
    gate: ClassVar[str] = ""
    """The law without which those of its kind after it cannot be tried."""

    def __init_subclass__(cls, **more: Any) -> None:
        """Let every law heed what the subject says of itself."""
        super().__init_subclass__(**more)
        for name, method in list(vars(cls).items()):
            if name.startswith(TEST) and inspect.isfunction(method):
                setattr(cls, name, _heeding(method))

    def test_breaks_only_laws_that_there_are(self) -> None:
        """What a plugin says it breaks, in `breaks`, are laws by name, each with a reason.

        Without it, a misspelt name excuses nothing, and a reader of the report cannot tell what is meant.
        """
        known = {law.name for law in laws_of(type(self))}
        for name, reason in broken_laws(getattr(self, self.subject)).items():
            assert name in known, f"`breaks` names {name!r}, which is no law of these{_meant(name, sorted(known))}"
            assert isinstance(reason, str), f"`breaks` gives no reason for {name!r}"
            assert reason.strip(), f"`breaks` gives no reason for {name!r}"

    def note(self, what: str, value: float) -> None:
        """Leave a figure for whoever runs the law: the largest so far."""
        figures: dict[str, float] = self.__dict__.setdefault("figures", {})
        figures[what] = max(value, figures.get(what, value))

    def same(self, one: Tensor, other: Tensor, *, rtol: float | None = None, atol: float | None = None, told: str = "") -> None:
        """Refuse tensors that differ by more than rounding; note by how much they do."""
        for value in (one, other):
            assert not value.isnan().any(), f"what is to be the same is {value.tolist()}"
        if one.shape == other.shape and one.numel():
            self.note("largest difference", float((one.detach().double() - other.detach().double()).abs().max()))
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, msg=(lambda text: f"{told}\n{text}") if told else None)


@dataclass(frozen=True, slots=True)
class Law:
    """A law in words."""

    name: str
    """As `breaks` names it."""
    says: str
    without: str
    """What breaks where it does not hold."""

    @property
    def words(self) -> str:
        """Its name, to be read."""
        return self.name.replace("_", " ")


def laws_of(kit: type[Laws]) -> Sequence[Law]:
    """The laws of a kit, its own first."""
    names = [name for cls in kit.__mro__ for name in vars(cls) if name.startswith(TEST)]
    return [_in_words(name, getattr(kit, name)) for name in dict.fromkeys(names)]


def _in_words(name: str, method: Callable[..., Any]) -> Law:
    says, _, without = " ".join((inspect.getdoc(method) or "").split()).partition(WITHOUT)
    return Law(name.removeprefix(TEST), says.strip(), without.strip())


def _meant(name: str, known: Sequence[str]) -> str:
    begun = [each for each in known if each.startswith(name)]
    return f"; did you mean `{begun[0]}`?" if len(begun) == 1 else suggest(name, known)


def kept_after_all(name: str) -> str:
    """What is said of a law that was given up for nothing."""
    return f"`breaks` names {name!r}, which is kept: take it out, or try what does not keep it"


def _heeding(law: Callable[..., None]) -> Callable[..., None]:
    """The law for pytest: where the subject breaks it in the open, failing is what is expected."""
    name = law.__name__.removeprefix(TEST)

    @functools.wraps(law)
    def heeding(self: Laws, *given: Any, **named: Any) -> None:
        import pytest

        breaks: Mapping[str, str] = broken_laws(getattr(self, self.subject, None))
        try:
            law(self, *given, **named)
        except DoesNotApply as why:
            pytest.skip(str(why))
        except Exception:
            if name not in breaks:
                raise
            pytest.xfail(breaks[name])
        if name in breaks:
            raise AssertionError(kept_after_all(name))

    return heeding

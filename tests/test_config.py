"""Tables into dataclasses: every error says where, which key, what stood there, and what was meant."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import pytest
from annotated_types import Gt, Interval
from hypothesis import given
from hypothesis import strategies as st

from zephyr_kit import ZkitError
from zephyr_kit.config import Builder, Offered, PresetError, default_use, plain, suggest
from zephyr_kit.protocols import INLINE


class Engine(Protocol):
    pass


@dataclass(frozen=True)
class Petrol:
    litres: Annotated[float, Gt(0)] = 40.0
    fuel: Literal["diesel", "super"] = "super"

    def __post_init__(self) -> None:
        if self.litres > 100:
            raise ValueError("`litres` is more than fits")


@dataclass(frozen=True)
class Electric:
    cells: Annotated[int, Interval(ge=1, le=9)]

    def __post_init__(self) -> None:
        if self.cells == 7:
            raise ZkitError("seven is bad luck")


@dataclass(frozen=True)
class Wheel:
    size: int = 16
    tyre: str | None = None


@dataclass(frozen=True)
class Trailer:
    engine: Engine = dataclasses.field(metadata={INLINE: True})
    load: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Car:
    name: str
    engine: Engine = default_use("petrol")
    wheels: tuple[Wheel, ...] = ()
    trailer: Trailer | None = None
    colours: Literal["any"] | tuple[str, ...] = "any"
    labels: dict[str, str] = field(default_factory=dict)
    manual: Path | None = None
    abs: bool = True


OFFERS = {Engine: Offered("engine", {"petrol": Petrol, "electric": Electric}, "\n  plugin steam is broken: no water")}


def build(table: dict[str, Any], **origins: str) -> tuple[Car, dict[str, tuple[Any, str]]]:
    builder = Builder(OFFERS, "car.toml", origins)
    car = builder.build(Car, {"name": "c", **table}, "car")
    return car, {setting.path: (setting.value, setting.origin) for setting in builder.settings}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"nmae": 1}, "[car] does not know the key `nmae` (= 1); did you mean `name`?"),
        ({"xyz": 1}, "[car] does not know the key `xyz` (= 1); there is abs, colours, engine, labels, manual, name, trailer, wheels"),
        ({"name": 3}, "[car] `name` = 3: should be a text"),
        ({"abs": 1}, "[car] `abs` = 1: should be true or false"),
        (
            {"engine": "diesel"},
            '[car.engine] `use` = "diesel": no plugin offers such an engine; there is electric, petrol\n  plugin steam is',
        ),
        ({"engine": "petrl"}, '[car.engine] `use` = "petrl": no plugin offers such an engine; did you mean `petrol`?'),
        ({"engine": {}}, '[car.engine] needs `use = "…"`, the name of an engine; there is electric, petrol'),
        ({"engine": {"ues": "petrol"}}, '[car.engine] needs `use = "…"`, the name of an engine; did you mean `use` by `ues`?'),
        ({"engine": {"use": ["petrol"]}}, '[car.engine] `use` = ["petrol"]: should be the name of an engine'),
        ({"engine": 3}, "[car] `engine` = 3: should be a table"),
        ({"engine": "electric"}, "[car.engine] needs `cells`"),
        ({"engine": {"use": "electric", "cels": 2}}, "[car.engine] does not know the key `cels` (= 2); did you mean `cells`?"),
        ({"engine": {"use": "electric", "cells": 10}}, "[car.engine] `cells` = 10: should be less than or equal to 9"),
        ({"engine": {"use": "electric", "cells": 2.0}}, "[car.engine] `cells` = 2.0: should be a whole number"),
        ({"engine": {"use": "electric", "cells": True}}, "[car.engine] `cells` = true: should be a whole number"),
        ({"engine": {"use": "electric", "cells": "2"}}, '[car.engine] `cells` = "2": should be a whole number'),
        ({"engine": {"use": "electric", "cells": 7}}, "[car.engine] seven is bad luck"),
        ({"engine": {"use": "petrol", "litres": 0}}, "[car.engine] `litres` = 0: should be greater than 0"),
        ({"engine": {"use": "petrol", "litres": float("inf")}}, "[car.engine] `litres` = Infinity: should be a finite number"),
        ({"engine": {"use": "petrol", "litres": float("nan")}}, "[car.engine] `litres` = NaN: should be a finite number"),
        ({"engine": {"use": "petrol", "litres": 101}}, "[car.engine] `litres` is more than fits"),
        (
            {"engine": {"use": "petrol", "fuel": "desel"}},
            "[car.engine] `fuel` = \"desel\": should be 'diesel' or 'super'; did you mean `diesel`?",
        ),
        ({"wheels": {"size": 15}}, '[car] `wheels` = {"size": 15}: should be a list of tables'),
        ({"wheels": [{"size": 15}, 3]}, "[car] `wheels[1]` = 3: should be a table"),
        ({"wheels": [{"size": 15}, {"siez": 3}]}, "[car.wheels[1]] does not know the key `siez` (= 3); did you mean `size`?"),
        ({"wheels": [{"size": "a"}]}, '[car.wheels[0]] `size` = "a": should be a whole number'),
        ({"trailer": {"lood": 1.0, "use": "petrol"}}, "[car.trailer] does not know the key `lood` (= 1.0); did you mean `load`?"),
        ({"trailer": {"load": "a", "use": "petrol"}}, '[car.trailer] `load` = "a": should be a number'),
        ({"trailer": {"load": 1.0}}, '[car.trailer] needs `use = "…"`'),
        ({"colours": "ayn"}, "[car] `colours` = \"ayn\": should be 'any' or a list; did you mean `any`?"),
        ({"colours": ["red", 3]}, "[car] `colours[1]` = 3: should be a text"),
        ({"labels": {"a": 3}}, "[car.labels] `a` = 3: should be a text"),
        ({"labels": "a"}, '[car] `labels` = "a": should be a table'),
        ({"name": object}, "[car] `name` = \"<class 'object'>\": should be a text, a number, true or false, a list or a table"),
        ({"name": 10 * ["long text"]}, '"long text"...: should be a text'),
    ],
)
def test_an_error_says_where_what_and_what_else(table, message):
    with pytest.raises(PresetError) as caught:
        build(table)
    assert str(caught.value).startswith("car.toml: [car")
    assert message in str(caught.value)


def test_a_required_key_is_missed():
    with pytest.raises(PresetError, match=r"car.toml: \[car\] needs `name`"):
        Builder(OFFERS, "car.toml").build(Car, {}, "car")


def test_values_become_what_the_annotations_say():
    wheels = [{"size": 15}, {"tyre": "winter"}]
    car, _ = build({"wheels": wheels, "trailer": {"use": "petrol", "litres": 3, "load": 2}, "colours": ["red"], "manual": "a/b"})
    assert car.wheels == (Wheel(15), Wheel(16, "winter"))
    assert car.trailer == Trailer(Petrol(3.0), 2.0)
    assert (car.engine, car.colours, car.manual) == (Petrol(), ("red",), Path("a/b"))


def test_a_name_alone_stands_for_a_table():
    assert build({"engine": "petrol"})[0] == build({"engine": {"use": "petrol"}})[0]


def test_settings_tell_where_each_value_comes_from():
    _, settings = build({"engine": {"use": "petrol", "litres": 3}, "wheels": [{"size": 15}]}, **{"car.engine.litres": "command line"})
    assert settings["car.engine.use"] == ("petrol", "car.toml")
    assert settings["car.engine.litres"] == (3, "command line")
    assert settings["car.engine.fuel"] == ("super", f"default of {__name__}")
    assert settings["car.wheels[0].size"] == (15, "car.toml")
    assert settings["car.labels"] == ({}, f"default of {__name__}")


def test_a_default_offer_is_no_value_of_the_file():
    _, settings = build({})
    assert settings["car.engine.use"] == ("petrol", f"default of {__name__}")


def test_an_error_about_a_value_from_elsewhere_says_so():
    with pytest.raises(PresetError, match=r"should be greater than 0 \(from command line\)$"):
        build({"engine": {"use": "petrol", "litres": 0}}, **{"car.engine.litres": "command line"})
    with pytest.raises(PresetError, match=r"more than fits \(partly from command line\)$"):
        build({"engine": {"use": "petrol", "litres": 101}}, **{"car.engine.litres": "command line"})


KEYS = st.sampled_from(["name", "engine", "wheels", "trailer", "colours", "labels", "manual", "abs", "use", "size", "cells", "zz"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["petrol", "electric"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_table_builds_or_is_refused(table):
    # Whatever else it raised would fail the test.
    with contextlib.suppress(PresetError):
        car = Builder(OFFERS, "car.toml").build(Car, table, "car")
        assert plain(car)["name"] == table["name"]


def test_suggestions():
    assert suggest("bta", ["beta", "tau"]) == "; did you mean `beta`?"
    assert suggest("q", ["beta", "alpha"]) == "; there is alpha, beta"
    assert suggest("q", []) == "; there is none"

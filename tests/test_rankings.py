"""Rated completions each by itself, and rankings of so many; and what a stage says of rows that do not fit its objective."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from zkit_optimizers.adamw import AdamW
from zkit_preference.kto import Kto
from zkit_preference.listwise_dpo import ListwiseDpo

from zephyr_kit.admission import Door
from zephyr_kit.binarise import Binarise
from zephyr_kit.example import Example, ExampleError, Message
from zephyr_kit.portion import Portion
from zephyr_kit.stages import Train, TrainStage


def rated(*scores: float) -> Example:
    completions = tuple((Message("assistant", f"reply {number}"),) for number in range(len(scores)))
    return Example((Message("user", "Ask"),), completions, scores, "row")


def texts(example: Example) -> list[str]:
    return [completion[0].content[-1] for completion in example.completions]


def test_each_by_itself() -> None:
    made = Binarise("each").apply(rated(3.0, math.nan, 7.0), 0)
    assert [(texts(example), example.scores) for example in made.examples] == [(["0"], (3.0,)), (["2"], (7.0,))]
    assert made.left_out == ("no score",)


@pytest.mark.parametrize(
    ("scores", "take", "margin", "expected"),
    [
        ((1.0, 9.0, 5.0, 7.0), 4, 0.0, "1320"),
        ((1.0, 9.0, 5.0, 7.0), 3, 0.0, "120"),
        ((1.0, 9.0, 5.0, 7.0), 2, 0.0, "10"),
        ((5.0, 5.0, 9.0, 1.0, 5.0), 3, 0.0, "203"),
        ((5.0, 5.5, 9.0, 1.0, 4.8), 3, 1.0, "213"),
        ((9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0), 4, 0.0, "0246"),
    ],
)
def test_so_many_of_a_ranking(scores: tuple[float, ...], take: int, margin: float, expected: str) -> None:
    (example,) = Binarise("ranked", take=take, margin=margin).apply(rated(*scores), 0).examples
    assert "".join(texts(example)) == expected


def test_too_few_ranks() -> None:
    made = Binarise("ranked", take=3).apply(rated(5.0, 5.0, 1.0, 1.0), 0)
    assert (made.examples, made.reason) == ((), "fewer than 3 scores differ at all")


def test_take_is_for_rankings() -> None:
    with pytest.raises(ValueError, match="`take` is for"):
        Binarise("best_worst", take=2)
    with pytest.raises(ValueError, match="compares nothing"):
        Binarise("each", margin=1.0)


class NoRows:
    """A source; nothing is read of it."""


@pytest.mark.parametrize(("rule", "given"), [(Binarise("each"), 1), (Binarise("ranked", take=3), 3)])
def test_a_rule_that_cannot_fit(rule: Binarise, given: int) -> None:
    train = Train(learning_rate=1e-3, steps=1, examples_per_step=1, optimizer=AdamW())
    portion = Portion(NoRows(), binarise=rule)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"gives {given} completion\(s\), but the objective takes 4"):
        TrainStage(ListwiseDpo(), (portion,), train)
    TrainStage(ListwiseDpo(), (Portion(NoRows(), binarise=Binarise("ranked")),), train)  # type: ignore[arg-type]


FEW = 'objective compares 4: where rows have more of them, with scores, binarise = { rule = "ranked", take = 4 } takes so many'


@pytest.mark.parametrize(
    ("example", "objective", "words"),
    [
        (rated(1.0, 2.0, 3.0), ListwiseDpo(), FEW),
        (replace(rated(1.0), scores=(1.0, 2.0)), Kto(), "has 2 score(s) for 1 completion(s)"),
        (rated(math.nan), Kto(), "has a completion without a score"),
        (Example(rated(1.0).prompt, rated(1.0).completions), Kto(), "has a completion without a score"),
    ],
)
def test_rows_that_do_not_fit(example: Example, objective: ListwiseDpo | Kto, words: str) -> None:
    door = Door(objective.completions, 64, "cut", rated=isinstance(objective, Kto))
    with pytest.raises(ExampleError, match=re.escape(words)):
        door.check(example)

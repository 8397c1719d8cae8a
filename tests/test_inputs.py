"""What a run was begun with, and what it is given now."""

from __future__ import annotations

import pytest

from zephyr_kit.config import PresetError
from zephyr_kit.exits import Exit
from zephyr_kit.inputs import Change, ChangedInputs, changes, files_differing, names, refuse, refuse_unknown

KEY = {
    "seed": 1,
    "settings": {"objective.beta": 0.1, "train.steps": 10},
    "model": {"dtype": "float32", "lora": {"rank": 4}, "weights": {"a.safetensors": "11", "b.json": "22"}},
    "tokenizer": "33",
    "data": [['{"content": "aaaa"}', 1.0], ["other", 0.5]],
    "before": "44",
}


def changed(**parts):
    return {**KEY, **parts}


@pytest.mark.parametrize(
    ("now", "name", "was", "is_"),
    [
        (changed(seed=2), "seed", "1", "2"),
        (changed(settings={"objective.beta": 0.3, "train.steps": 10}), "stages.dpo.objective.beta", "0.1", "0.3"),
        (changed(settings={"objective.beta": 0.1}), "stages.dpo.train.steps", "10", "–"),
        (changed(model={**KEY["model"], "dtype": "bfloat16"}, tokenizer="x"), "model.dtype", "float32", "bfloat16"),
        (changed(model={**KEY["model"], "lora": {"rank": 8}}), "stages.dpo.model.lora.rank", "4", "8"),
        (changed(model={**KEY["model"], "weights": {"a.safetensors": "12", "b.json": "23"}}), "model.weights", "22", "23"),
        (changed(tokenizer="34"), "stages.dpo.tokenizer", "33", "34"),
        (changed(before="45"), "stages.dpo.before", "44", "45"),
    ],
)
def test_a_change_has_the_name_that_presets_have(now, name, was, is_):
    assert changes("dpo", KEY, now, frozenset({"lora"})) == [Change(name, was, is_)]


def test_of_long_values_the_part_that_differs_is_shown():
    (found,) = changes("sft", KEY, changed(data=[['{"content": "aaab"}' + "x" * 60, 1.0], ["other", 0.5]]))
    assert found.name == "stages.sft.data[0]"
    assert found.was != found.now
    assert max(len(found.was), len(found.now)) <= 40


def test_another_number_of_tables_is_one_change():
    (found,) = changes("sft", KEY, changed(data=KEY["data"][:1]))
    assert found.name == "stages.sft.data"


@pytest.mark.parametrize("accepted", ["all", "stages.dpo", "stages.dpo.data", "stages.dpo.data[0]"])
def test_a_name_accepts_what_stands_in_it(accepted):
    refuse([Change("stages.dpo.data[0]", "1", "2")], [accepted])


@pytest.mark.parametrize("accepted", ["", "stages.dp", "stages.dpo.dat", "stages.sft", "data"])
def test_other_names_do_not(accepted):
    with pytest.raises(ChangedInputs) as caught:
        refuse([Change("stages.dpo.data[0]", "1", "2"), Change("seed", "3", "4")], [accepted, "seed"])
    assert caught.value.exit is Exit.CHANGED
    _, titles, first, second, accept, _ = str(caught.value).splitlines()
    assert titles.split() == ["was", "is"]
    assert [first.split(), second.split()] == [["stages.dpo.data[0]", "1", "2"], ["seed", "3", "4"]]
    assert first.index("1") == second.index("3") == titles.index("was")
    assert "--accept 'stages.dpo.data[0]'  (or --accept all)" in accept


def test_what_is_accepted_is_the_name_of_an_input_or_of_a_table():
    known = names("dpo", KEY, frozenset({"lora"}))
    assert {"seed", "model.weights", "stages.dpo.model.lora.rank", "stages.dpo.data[1]", "stages.dpo.objective.beta"} <= known
    refuse_unknown(["all", "seed", "stages.dpo", "stages.dpo.data", "stages.dpo.data[0]", "model"], known)
    with pytest.raises(PresetError, match=r"--accept stages\.dpo\.objective\.bet: .* did you mean `stages\.dpo\.objective\.beta`"):
        refuse_unknown(["seed", "stages.dpo.objective.bet"], known)
    with pytest.raises(PresetError, match=r"--accept nosuch\.key: no input of the run has that name; .* and all is all of them"):
        refuse_unknown(["nosuch.key"], known)


def test_of_files_those_that_differ_are_named():
    before, now = {"a": "1", "b": "2", "c": "3", "e": "6"}, {"a": "1", "b": "4", "d": "5", "moved": "6"}
    assert files_differing(before, now) == "b has changed, d is new, c is gone"
    assert files_differing(before, dict(before)) == ""
    assert files_differing({}, {str(number): str(number) for number in range(9)}).endswith("4 is new and 4 more")

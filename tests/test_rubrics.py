"""Rubrics: those at hand, and files of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from zkit_feedback.judge import EndpointJudge
from zkit_feedback.rubric import check_name, known_rubrics, read_rubric

from zephyr_kit import ZkitError
from zephyr_kit.config import PresetError

GOOD = '[[aspects]]\nname = "warmth"\nquestion = "Is it warm?"\ngrades = ["cold", "warm"]\n'


def test_the_aspects_of_ultrafeedback_are_graded_from_1_to_5_and_the_whole_from_1_to_10() -> None:
    rubric = read_rubric("ultrafeedback")
    assert {aspect.name: aspect.best for aspect in rubric.asked} == {
        "instruction_following": 5,
        "honesty": 5,
        "truthfulness": 5,
        "helpfulness": 5,
        "overall": 10,
    }
    assert [aspect.name for aspect in rubric.asked if aspect.not_applicable] == ["honesty"]


def test_the_overall_critique_is_the_same_in_both() -> None:
    assert known_rubrics() == ["overall", "ultrafeedback"]
    alone = read_rubric("overall")
    assert alone.overall == read_rubric("ultrafeedback").overall
    assert alone.aspects == ()


@pytest.mark.parametrize("name", ["overall", "ultrafeedback"])
def test_every_grade_means_something_of_its_own(name: str) -> None:
    for aspect in read_rubric(name).asked:
        assert len(set(aspect.grades)) == len(aspect.grades)
        assert "  " not in aspect.question


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs [[aspects]], or [overall], or both"),
        (GOOD.replace("grades", "grade"), "[aspects[0]] does not know the key `grade`"),
        (GOOD.replace('"cold", ', ""), "there are at least two"),
        (GOOD.replace("warmth", "How warm"), "should be small letters"),
        (GOOD + GOOD, "needs a `name` of its own"),
        (GOOD.replace('name = "warmth"', ""), "needs a `name` of its own"),
        (GOOD + "[overall", "not a TOML file"),
        ("aspects = 3", "should be a list of tables"),
    ],
)
def test_a_rubric_that_is_refused_names_its_file(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(PresetError) as error:
        read_rubric(str(file))
    assert said in str(error.value)
    assert str(file) in str(error.value)


def test_a_name_that_no_rubric_has() -> None:
    with pytest.raises(ValueError, match="did you mean `ultrafeedback`"):
        check_name("ultrafeedbak")
    with pytest.raises(PresetError, match="cannot be read: No such file"):
        read_rubric("nowhere.toml")


def test_a_score_that_the_rubric_does_not_have(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD, "utf-8")
    place = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}
    with pytest.raises(ZkitError, match=r"has no \[overall\]"):
        EndpointJudge(**place, rubric=str(file), score="overall").fingerprint()
    with pytest.raises(ZkitError, match=r"has no \[\[aspects\]\]"):
        EndpointJudge(**place, rubric="overall", score="mean").fingerprint()
    assert EndpointJudge(**place, rubric=str(file)).fingerprint()["score"] == "mean"

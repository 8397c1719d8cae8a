"""Filters: laws, what each removes and changes, and what it must not touch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dialogues import dialogue, numbered, pair, story
from zkit_filters import zkit_filters
from zkit_filters.decontaminate import Decontaminate
from zkit_filters.disclaimers import REASON, Disclaimers
from zkit_filters.language import Language
from zkit_filters.length import Length
from zkit_filters.near_duplicates import NearDuplicates
from zkit_filters.truecase import Truecase
from zkit_sources.files import Jsonl

from zephyr_kit import ZkitError
from zephyr_kit.example import TEXT, Example, Message
from zephyr_kit.testing import FilterLaws

PLAIN = dialogue("Where is Rome?", "It is in Italy. It lies on the Tiber, and it is old.")
TEXT_ROW = Example((), ((Message(TEXT, "A text that stands as it is."),),), origin="rows.jsonl:9")


class TestTruecaseLaws(FilterLaws):
    filter = Truecase()
    rows = [PLAIN, TEXT_ROW, dialogue("Hello. how are you?", "Fine. and you?"), pair("i think so", "Yes. you do.", "No. you don't.")]


class TestDisclaimersLaws(FilterLaws):
    filter = Disclaimers(patterns=("as a plant, i",))
    rows = [PLAIN, TEXT_ROW, dialogue("Sad?", "I do not have personal experiences."), pair("Sad?", "As a plant, I am not.", "No.")]


class TestLengthLaws(FilterLaws):
    filter = Length(min_words=6, max_turns=4, min_reply_words=2)
    rows = [
        PLAIN,
        TEXT_ROW,
        dialogue("Why?", "So."),
        dialogue(*["Go on, please."] * 6),
        pair("Which of the two is it now?", "The first one.", "That."),
    ]


class TestLanguageLaws(FilterLaws):
    filter = Language()
    rows = [
        PLAIN,
        TEXT_ROW,
        dialogue("Wo liegt die Stadt Rom?", "Rom liegt in Italien, am Fluss Tiber, und ist eine sehr alte Stadt."),
        pair("Où se trouve la ville de Rome ?", "Elle se trouve en Italie, au bord du Tibre.", "Je ne sais pas."),
    ]


class TestNearDuplicatesLaws(FilterLaws):
    filter = NearDuplicates()
    rows = numbered(
        [dialogue(story(seed), story(seed + 1)) for seed in (1, 2, 1, 3, 2, 4, 1, 4)]
        + [dialogue("…", "?!"), pair("Why?", story(5), story(6))],
    )

    def test_the_first_of_a_group_stays(self, tmp_path):
        answers = self._answers(tmp_path, self._met())
        assert [answer.partition(" (")[0] for answer in answers if answer] == ["near-duplicate of an earlier row"] * 4
        repeated = {number: answer.partition(" (")[2].rstrip(")") for number, answer in enumerate(answers) if answer}
        assert repeated == {number: self.rows[earlier].origin for number, earlier in ((2, 0), (4, 1), (6, 0), (7, 5))}


@pytest.fixture(scope="class")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Jsonl:
    path = tmp_path_factory.mktemp("evaluation") / "exam.jsonl"
    rows = [{"text": f"Question one: {story(20, 30)}?"}, {"text": "What did the tall man say to the duck?"}, {"text": "Say why."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return Jsonl(str(path), format="text")


class TestDecontaminateLaws(FilterLaws):
    rows = numbered(
        [
            PLAIN,
            TEXT_ROW,
            dialogue("Please.", f"Here it is: {story(20, 30).upper()}!"),
            dialogue("Say why.", story(3)),
            pair("Q", "A", story(20, 30)),
        ],
    )

    @pytest.fixture(autouse=True)
    def _against(self, evaluation):
        self.filter = Decontaminate((evaluation,))

    def test_counts_each_set_by_name(self, evaluation):
        reasons = [self.filter.look(row).reason for row in self.rows]
        assert reasons == ["", "", f"shares 10 words with {evaluation.path}", "", f"shares 10 words with {evaluation.path}"]

    def test_a_shorter_text_is_found_whole(self, evaluation):
        whole, part = "So, what did the tall man say -- to the DUCK", "What did the tall man say to the goose?"
        assert self.filter.look(dialogue("Hi", whole)).reason == f"shares 9 words with {evaluation.path}"
        assert self.filter.look(dialogue("Hi", part)).reason == ""

    def test_a_run_must_be_whole(self):
        nine = " ".join(story(20, 30).split()[3:12])
        assert self.filter.look(dialogue("Hi", f"{nine} elsewhere")).reason == ""
        assert Decontaminate(self.filter.against, ngram=9).look(dialogue("Hi", f"{nine} elsewhere")).example is None

    def test_tells_of_problems_and_content_of_its_sets(self, tmp_path, evaluation):
        missing = Decontaminate((Jsonl(str(tmp_path / "none.jsonl")),))
        assert "`against`: " in missing.problems()[0]
        assert "no such file" in missing.problems()[0]
        other = tmp_path / "other.jsonl"
        other.write_text('{"text": "another"}\n', "utf-8")
        second = Jsonl(str(other))
        prints = {Decontaminate(sources).fingerprint() for sources in ((evaluation,), (second,), (evaluation, second))}
        assert len(prints) == 3

    def test_an_evaluation_set_is_read_whole_or_not_at_all(self, tmp_path):
        path = tmp_path / "exam.jsonl"
        path.write_text('{"text": "one"}\n{"txt": "two"}\n', "utf-8")
        with pytest.raises(ZkitError, match=r"exam\.jsonl:2: .*cannot be kept out"):
            Decontaminate((Jsonl(str(path), format="text"),)).look(PLAIN)

    def test_needs_something_to_look_for(self):
        with pytest.raises(ValueError, match="`against`"):
            Decontaminate(())


@pytest.mark.parametrize("name", ["messages", "ultrafeedback", "text", "prompt"])
@pytest.mark.parametrize(
    "strict",
    [Length(min_words=5000), Length(max_words=1, max_turns=1), Language(keep=("ja",)), "decontaminate"],
    ids=lambda each: str(each)[:20],
)
def test_a_miniature_takes_no_generated_row_away(tmp_path, name, strict):
    rows = [{"text": f"It is {story(seed)}."} for seed in range(9)]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    source = Jsonl(str(tmp_path / "exam.jsonl"), format=name)
    if strict == "decontaminate":
        strict = Decontaminate((source, Jsonl(source.path, format="any_text")), ngram=2)
    small = strict.miniature(tmp_path / "filter")
    generated = list(source.miniature(tmp_path / "rows").rows())
    assert len(generated) == 64
    assert [small.look(row).reason for row in generated] == [""] * 64


@pytest.mark.parametrize(("made", "package"), [(Language(), "py3langid"), (NearDuplicates(), "datasketch")])
def test_another_version_of_what_a_filter_relies_on_sifts_anew(made, package, monkeypatch):
    before = made.fingerprint()
    monkeypatch.setattr(f"{type(made).__module__}.version", lambda name: f"{name} 99")
    assert made.fingerprint() != before
    assert f"{package} 99" in made.fingerprint()


def test_a_threshold_that_cannot_be_told_from_one():
    (problem,) = NearDuplicates(threshold=0.99).problems()
    assert "`threshold` = 0.99" in problem
    assert not NearDuplicates(threshold=0.99, num_permutations=1024).problems()


def test_offers_the_filters_by_name():
    assert {name: kind.__name__ for name, kind in zkit_filters().items()} == {
        "truecase": "Truecase",
        "disclaimers": "Disclaimers",
        "near_duplicates": "NearDuplicates",
        "decontaminate": "Decontaminate",
        "length": "Length",
        "language": "Language",
    }


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_words": 7}, "fewer than 7 words"),
        ({"max_words": 5}, "more than 5 words"),
        ({"min_words": 6, "max_words": 6}, ""),
        ({"min_turns": 5}, "fewer than 5 turns"),
        ({"max_turns": 3}, "more than 3 turns"),
        ({"min_turns": 4, "max_turns": 4}, ""),
        ({"min_reply_words": 2}, "a reply of fewer than 2 words"),
        ({"min_reply_words": 1}, ""),
    ],
)
def test_length_counts_words_and_turns(options, reason):
    assert Length(**options).look(dialogue("Why so?", "Because.", "And then?", "Nothing.")).reason == reason


def test_length_takes_the_longest_completion_and_the_shortest_reply():
    row = pair("one", "two three", "four five six")
    assert Length(min_words=4, max_words=4).look(row).reason == ""
    assert Length(min_reply_words=3).look(row).reason == "a reply of fewer than 3 words"


@pytest.mark.parametrize(("options", "told"), [({}, "needs at least one"), ({"min_words": 5, "max_words": 4}, "nothing could pass")])
def test_length_refuses_what_makes_no_sense(options, told):
    with pytest.raises(ValueError, match=told):
        Length(**options)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Please tell me where the station is, and when the next train leaves for the city.", "en"),
        ("Bitte sagen Sie mir, wo der Bahnhof ist und wann der nächste Zug in die Stadt fährt.", "de"),
        ("Dites-moi s'il vous plaît où se trouve la gare et quand part le prochain train.", "fr"),
        ("Por favor, dígame dónde está la estación y cuándo sale el próximo tren a la ciudad.", "es"),
        ("Пожалуйста, скажите, где находится вокзал и когда отправляется следующий поезд.", "ru"),
        ("请告诉我火车站在哪里，下一班开往城市的火车什么时候出发？我需要在今天晚上之前到达那里，否则就来不及了，谢谢你的帮助。", "zh"),
    ],
)
def test_language_tells_languages_apart(text, language):
    row = dialogue(text, text)
    assert Language(keep=(language,)).look(row).reason == ""
    assert Language(keep=("en" if language != "en" else "fr",)).look(row).reason == f"language {language}"
    assert Language(keep=("en", "fr", language)).look(row).reason == ""


def test_language_keeps_what_is_too_short_to_tell():
    assert Language().look(dialogue("Wie geht's?", "Gut, danke.")).reason == ""
    assert Language(min_letters=0).look(dialogue("Wie geht es dir?", "Es geht mir gut, danke.")).reason == "language de"


def test_language_does_not_read_code():
    code = "```python\n" + "for ligne in fichier: imprimer(ligne.nettoyer())\n" * 20 + "```"
    question = f"{code}\nPlease explain to me what this program does, line by line."
    assert Language().look(dialogue(question, "It prints each line.")).reason == ""


def test_language_refuses_unknown_codes():
    assert Language(keep=("en", "de")).problems() == []
    assert Language(keep=("eng",)).problems() == ["`keep`: no language is called 'eng'; did you mean 'en'?"]
    assert "known: ace, af, " in Language(keep=("klingon",)).problems()[0]
    with pytest.raises(ValueError, match="`keep` is empty"):
        Language(keep=())


def test_disclaimers_look_at_the_assistant_and_at_the_first_completion():
    said = "I do not have personal opinions."
    assert Disclaimers().look(dialogue("Why?", said)).reason == REASON
    assert Disclaimers().look(dialogue("Why?", "So.", "And?", said)).reason == REASON
    assert Disclaimers().look(dialogue(said, "I see.")).reason == ""
    assert Disclaimers().look(pair("Why?", said, "So.")).reason == REASON
    assert Disclaimers().look(pair("Why?", "So.", said)).reason == ""


def test_disclaimers_can_be_added(tmp_path: Path):
    row = dialogue("Why?", "As  a\nHumble oak, I wouldn’t know.")
    file = tmp_path / "mine.txt"
    file.write_text("# of trees\n\nas an? (?:humble )?(?:oak|elm), i wouldn't\n", "utf-8")
    assert Disclaimers().look(row).reason == ""
    assert Disclaimers(file=str(file)).look(row).reason == REASON
    assert Disclaimers(patterns=("humble oak",)).look(row).reason == REASON
    prints = {Disclaimers(**options).fingerprint() for options in ({}, {"file": str(file)}, {"patterns": ("humble oak",)})}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [("as (an oak", "is not a regular expression"), ("I am", "small letters"), ("a*", "matches any text"), ("i am|", "matches any text")],
)
def test_disclaimers_name_the_line_of_a_wrong_pattern(tmp_path, line, told):
    file = tmp_path / "mine.txt"
    file.write_text(f"# mine\nas an oak\n{line}\n", "utf-8")
    (problem,) = Disclaimers(file=str(file)).problems()
    assert problem.startswith(f"{file}:3: ")
    assert told in problem
    with pytest.raises(ZkitError, match=told):
        Disclaimers(patterns=(line,))


def test_disclaimers_tell_of_a_missing_file(tmp_path):
    assert "cannot be read: No such file" in Disclaimers(file=str(tmp_path / "none.txt")).problems()[0]

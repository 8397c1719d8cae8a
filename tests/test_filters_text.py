"""What truecasing mends and must not touch, and which replies disclaim; on sentences, and on real dialogues."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zkit_filters.disclaimers import Disclaimers
from zkit_filters.truecase import Truecase
from zkit_sources.files import Jsonl

from zephyr_kit.example import TEXT, Example, Message

STARTS, PRONOUNS, NAMES = "sentence starts", "i", "names"


def asked(text: str, *, role: str = "user") -> Example:
    said = Message(role, text)
    return Example((said,), ((Message("assistant", "Yes."),),)) if role != "assistant" else Example((), ((said,),))


def truecased(text: str, *, role: str = "user") -> tuple[str, str]:
    verdict = Truecase().look(asked(text, role=role))
    assert verdict.example is not None
    return [*verdict.example.prompt, *verdict.example.completions[0]][0].content, verdict.reason


@pytest.mark.parametrize(
    ("text", "mended", "reason"),
    [
        ("Hello. how are you?", "Hello. How are you?", STARTS),
        ("hello there! how are you?", "Hello there! How are you?", STARTS),
        ("It rains. and so?", "It rains. And so?", STARTS),
        ("Is it so? it is.", "Is it so? It is.", STARTS),
        ("What?! you did it.", "What?! You did it.", STARTS),
        ("It ended in 1999. then came more.", "It ended in 1999. Then came more.", STARTS),
        ("It costs 3%. that is much.", "It costs 3%. That is much.", STARTS),
        ("He left (at last). nobody wept.", "He left (at last). Nobody wept.", STARTS),
        ('She said "go." nobody went.', 'She said "go." nobody went.', ""),
        ("One line ends.\nthe next one begins here.", "One line ends.\nThe next one begins here.", STARTS),
        ("One ends.\n\nthe next one begins here and goes on", "One ends.\n\nThe next one begins here and goes on", STARTS),
        ("Use `ls`. it lists files.", "Use `ls`. It lists files.", STARTS),
        ("Ça va. été comme hiver.", "Ça va. Été comme hiver.", STARTS),
        ("It is well-known. re-read it.", "It is well-known. Re-read it.", STARTS),
        ("write a poem about the sea", "Write a poem about the sea", STARTS),
        ("Then i'm here, i’ve seen it, and i'll stay. So i'd say.", "Then I'm here, I’ve seen it, and I'll stay. So I'd say.", PRONOUNS),
        ("What should i cook?", "What should I cook?", PRONOUNS),
        ("Well, i think so, and i have reasons.", "Well, I think so, and I have reasons.", PRONOUNS),
        ("i think so.", "I think so.", f"{STARTS}, {PRONOUNS}"),
        ("We met on monday and in september.", "We met on Monday and in September.", NAMES),
        ("It is the french way; on march 3rd, or may 2020.", "It is the French way; on March 3rd, or May 2020.", NAMES),
        ("On christmas, the snow came. i saw it.", "On Christmas, the snow came. I saw it.", f"{STARTS}, {PRONOUNS}, {NAMES}"),
    ],
)
def test_truecase_mends(text, mended, reason):
    assert truecased(text) == (mended, reason)
    assert truecased(mended) == (mended, "")


UNTOUCHED = [
    "Some fruit, e.g. apples, i.e. round ones, etc. and so on.",
    "Smith et al. wrote of dogs vs. cats, approx. ten of them.",
    "At 5 a.m. on a Monday, Dr. med. Who met J. r. Smith in the U.S. and left.",
    "Well... and so it goes... on. … and on",
    "It is 3. 5 or 2.5 apples.",
    "Pick one:\n1. preheat the oven\n2. mix it",
    "1. one 2. two 3. three",
    "I like it. iPhone and eBay are names. x86 is a chip. iOS. macOS too.",
    "Use npm. npm installs. pip does as well.",
    "See main.py. utils.py is next. foo.bar() too. foo_bar. foo() is called.",
    "Go to http://example.com/a.b. or write to me@example.org.",
    "The file is at /etc/hosts. usr/bin is another.",
    "```\nprint('a. b'). then i am\n```",
    "Run this:\n```python\n# first. then i'm done on monday and the rest\n```\nDone.",
    "Say `hello. how are you` to it.",
    "As follows.\nimport numpy as np\nx = 1",
    "As follows.\n    indent this line of text, please.",
    "As follows.\nselect name from users where age > 3;",
    "As follows.\nkey: value\nother: more",
    "As follows.\nflour\nsugar",
    "First.\nfor i in range(10): print(i)",
    "The sum over i is finite; for i and j, where i is odd, i = 3, x_i and a[i] too.",
    "Chapter i, part (i) and i. of the i-th.",
    "Anna i ragazzi mangiano la pizza.",
    "Mam psa i do tego kota.",
    '"Really?" she asked. "Yes!" he said.',
    "I read it on Yahoo! and Jeopardy! is on.",
    "Is it (really?) so.",
    "f is a function. g is another. f maps a. b.",
    "Choose. a) one b) two",
    "I may march in the august rain and wait. We march 10 miles.",
    "We saw the monday.com page and the #friday tag and the sunday_list.",
    "Op maandag, of in september, is het koud.",
    "Count on until i reaches the end, when i has grown.",
    "Steps.\ni. one is here.\nii. if it is so, stop.",
    "Harvard University Press. pp. 221 and so on.",
    "In the reaction 262. liters per second are used.",
    '{"query": "It is no good fit. default to true", "other": 1}',
    "Proof.\n  intros n of some kind.\n  apply the first one to it.",
    "yes",
    "positive",
    "ls -la /tmp",
    "apple.banana.cherry",
    "",
    "   ",
    "?! ...",
]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_truecase_leaves(text):
    assert truecased(text) == (text, "")


def test_truecase_leaves_a_style():
    verse = "the sea. it sings. we hear. we stay. no more."
    assert truecased(verse, role="assistant") == (verse, "")
    assert truecased("the sea. it sings.", role="assistant")[1] == STARTS
    assert truecased(verse, role="user")[1] == STARTS


def test_truecase_leaves_dialogues_about_capitals():
    row = Example((Message("user", 'Add capitalization: "hello. how are you"'),), ((Message("assistant", "Which one. that?"),),))
    assert Truecase().look(row).reason == ""


def test_truecase_minds_roles():
    row = Example((Message("system", "be kind. be short."), Message("user", "Hi. you there?")), ((Message("assistant", "Yes. i am."),),))
    assert _texts(Truecase().look(row).example) == ["be kind. be short.", "Hi. You there?", "Yes. I am."]
    assert _texts(Truecase(("system", "user")).look(row).example) == ["Be kind. Be short.", "Hi. You there?", "Yes. i am."]
    verbatim = Example((), ((Message(TEXT, "Hi. you there?"),),))
    assert Truecase().look(verbatim).example == verbatim
    with pytest.raises(ValueError, match="`roles` is empty"):
        Truecase(())


def test_truecase_mends_every_completion():
    replies = ((Message("assistant", "So. it is."),), (Message("assistant", "No. it is not."),))
    pair = Example((Message("user", "Why?"),), replies, (2.0, 1.0))
    assert _texts(Truecase().look(pair).example) == ["Why?", "So. It is.", "No. It is not."]


PIECES = st.lists(
    st.sampled_from(["hello", ". ", "? ", "i ", "i'm ", "the ", "monday", "\n", "`", "```", "e.g. ", "Then ", "été ", "ß", "x = 1", "..."]),
)


@given(st.one_of(st.text(), PIECES.map("".join)))
def test_truecase_changes_case_alone_and_nothing_twice(text):
    once, reason = truecased(text)
    assert once.lower() == text.lower()
    assert (once != text) == (reason != "")
    assert truecased(once) == (once, "")


def _texts(example: Example | None) -> list[str]:
    assert example is not None
    return [message.content for messages in (example.prompt, *example.completions) for message in messages]


DISCLAIM = [
    "I do not have personal experiences.",
    "As an AI language model, I do not have personal experiences or emotions, but I can tell you about Paris.",
    "As an AI language model, I don't have personal preferences or opinions. However, many people enjoy it.",
    "I don't have emotions or feelings.",
    "I do not have emotions, so I cannot say.",
    "I don't have opinions.",
    "I’m just an AI, so I can’t feel sadness the way you do, but I don’t have feelings.",
    "As a language model, I cannot hold personal beliefs on this matter.",
    "Being an AI, I do not possess consciousness.",
    "I am an AI language model and do not have personal feelings about it.",
    "I'm an artificial intelligence, which means that I don't experience emotions.",
    "Thanks for asking! As a chatbot, I don't have a favorite movie.",
    "I do not have a physical body, so I cannot eat.",
    "I don't have a physical form.",
    "I don't have taste buds, but it is said to be sweet.",
    "I am not capable of having personal opinions.",
    "I'm not able to form opinions.",
    "I do not have the ability to feel emotions.",
    "I don't have the capacity for consciousness.",
    "I am not a sentient being.",
    "I'm not sentient, but I can help.",
    "I can't share a personal opinion on politics.",
    "I cannot express personal views, but here are the facts.",
    "Unfortunately, I have no personal experience, but hikers say that the trail is steep.",
    "I lack personal experiences.",
    "AI models like me do not have feelings.",
    "My responses are not based on personal experience.",
    "As a virtual assistant, I do not have the ability to experience emotions.",
    "The capital is Rome. As an AI, I have no feelings on the matter.",
    "As an artificial intelligence language model, I can't have any subjective experiences of colour.",
    "I do not have feelings, thoughts, or beliefs.",
    "I don't actually have feelings like humans do.",
    "As a machine, I do not feel pain.",
    "I don't have opinions on politics, but here is an overview.",
    "Since I am an AI, I don't have hobbies.",
]

DO_NOT_DISCLAIM = [
    "I don't have feelings for my boss any more, she told her sister.",
    "He looked at her. 'I have no feelings for you,' he said.",
    "As an AI language model, I do not have access to real-time data.",
    "As an AI language model, I cannot browse the internet, but here is what I know.",
    "As an AI language model, I don't have access to customer experiences from last week.",
    "As an AI language model, I can share opinions that experts hold.",
    "I don't have an opinion column in that newspaper.",
    "I don't have any experience with Rust, the applicant wrote.",
    "I do not have experience in sales, but I learn quickly.",
    "People often say: they do not have emotions at work.",
    "The robot does not have feelings.",
    "Many patients do not have personal experiences of the disease.",
    "You don't have feelings of guilt, do you?",
    "I don't have any thoughts to add.",
    "I don't have preferences set up in this app.",
    "I cannot express how happy I am.",
    "I can't feel my legs!",
    "I am not conscious of any mistake.",
    "I am not aware of such a law.",
    "I do not have the ability to book a table for you.",
    "I'm unable to find the reservation.",
    "I am an engineer and do not have much time.",
    "As a manager, I don't have favorites in the team.",
    "In my opinion, AI cannot have opinions.",
    "As an AI enthusiast once said, emotions cannot be programmed.",
    "My answers are not final.",
    "As an AI system I do not actually have control over any physical robots.",
    "As an AI, I don't have real-time data or access to personal information.",
    "As an AI assistant, I do not have specific expertise in any particular industry.",
    "The company has no personal data of yours.",
    "I don't have my own car.",
    "I have no opinion polls at hand.",
    "It is not based on personal experience alone, the study says.",
    "I do not have a body of evidence to support this.",
    "Here are personal experiences of travellers who do not have feelings of fear.",
    "As a language teacher, I do not believe in grammar drills.",
    "I don't have feelings of regret about leaving.",
    "I never had strong emotions about the sea, wrote the captain.",
]


@pytest.mark.parametrize("reply", DISCLAIM)
def test_a_reply_that_disclaims(reply):
    assert Disclaimers().look(asked(reply, role="assistant")).example is None
    assert Disclaimers().look(asked(f"Sure.\n\n{reply.upper()}\nAnything else?", role="assistant")).example is None


@pytest.mark.parametrize("reply", DO_NOT_DISCLAIM)
def test_a_reply_that_does_not_disclaim(reply):
    assert Disclaimers().look(asked(reply, role="assistant")).reason == ""


def test_real_dialogues(shared):
    """Typed by people: none disclaims anything, and every fifth or so holds a wrong small letter."""
    rows = [row for row in Jsonl(str(shared / "data" / "chat_sgd.jsonl.gz")).rows() if isinstance(row, Example)]
    reasons: Counter[str] = Counter()
    for row in rows:
        verdict = Truecase().look(row)
        reasons[verdict.reason] += 1
        assert [text.lower() for text in _texts(verdict.example)] == [text.lower() for text in _texts(row)]
        assert (verdict.example == row) == (verdict.reason == "")
        assert Disclaimers().look(row).reason == ""
    assert 400 < len(rows) - reasons[""] < 700
    assert len(reasons) <= 8


def test_real_answers_of_models(shared):
    """Code, tables, mathematics and letters: hardly one in a hundred wants a capital; a few disclaim."""
    with gzip.open(shared / "data" / "feedback_arena.jsonl.gz", "rt", encoding="utf-8") as file:
        answers = [completion["response"] for line in file for completion in json.loads(line)["completions"]]
    rows = [asked(answer, role="assistant") for answer in answers]
    assert sum(Truecase().look(row).reason != "" for row in rows) < 0.01 * len(rows)
    assert 2 <= sum(Disclaimers().look(row).reason != "" for row in rows) < 0.005 * len(rows)

"""What users ask for, and the rows that are made of it."""

from __future__ import annotations

from random import Random

from zephyr_kit.example import TEXT, Example, Message
from zkit_quickstart.judge import judge
from zkit_quickstart.phrases import ASK_NEXT, ASK_SHORTER, FACTS, REQUESTS, TITLES
from zkit_quickstart.teacher import answer, flawed_answer
from zkit_quickstart.world import Form, Scene, Split, draw_scene, tell

NUM_CANDIDATES = 4
"""So many answers are gathered for a preference: the best is chosen, any worse one rejected."""


def text_row(random: Random, *, split: Split) -> Example:
    """A plain story, often under a title, or a few facts; no chat."""
    scene = draw_scene(random, split)
    if random.random() < 0.1:
        sentences = [scene.fill(phrase) for phrase in random.sample(FACTS, 3)]
    else:
        title = [scene.fill(random.choice(TITLES))] if random.random() < 0.9 else []
        sentences = [*title, *tell(scene, "shorter" if random.random() < 0.35 else "story", random)]
    return Example((), ((Message(TEXT, " ".join(sentences)),),))


def chat_row(random: Random, *, split: Split) -> Example:
    """A dialogue with the imperfect teacher: one turn, or two."""
    dialogue, scene, form = ask(random, split=split)
    reply = Message("assistant", answer(scene, form, random))
    return Example(dialogue[:1], ((*dialogue[1:], reply),))


def preference_row(random: Random, *, split: Split) -> Example:
    """The best of several answers of the teacher, and a worse one, as AI feedback finds them."""
    dialogue, scene, form = ask(random, split=split)
    while True:
        replies = [answer(scene, form, random) for _ in range(NUM_CANDIDATES)]
        scores = [judge(dialogue, reply) for reply in replies]
        worse = [number for number, score in enumerate(scores) if score < max(scores)]
        if worse:
            break
    pair = (scores.index(max(scores)), random.choice(worse))
    completions = tuple((Message("assistant", replies[number]),) for number in pair)
    return Example(dialogue, completions, tuple(scores[number] for number in pair))


def prompt_row(random: Random, *, split: Split) -> Example:
    """A dialogue that waits for an answer, for others to answer and judge."""
    dialogue, _, _ = ask(random, split=split)
    return Example(dialogue, ())


def ask(random: Random, *, split: Split) -> tuple[tuple[Message, ...], Scene, Form]:
    """A dialogue that waits for an answer, what it is about, and which form the answer takes."""
    scene = draw_scene(random, split)
    request = Message("user", scene.fill(random.choice(REQUESTS)))
    form: Form = random.choices(("story", "shorter", "next"), (70, 15, 15))[0]
    if form == "story":
        return (request,), scene, form
    pleased = Message("assistant", flawed_answer(scene, "story", random, flaws=()))  # else nobody would ask on
    follow_up = scene.fill(random.choice(ASK_SHORTER if form == "shorter" else ASK_NEXT))
    return (request, pleased, Message("user", follow_up)), scene, form

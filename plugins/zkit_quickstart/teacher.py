"""The imperfect teacher: what it says, and what it gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from zkit_quickstart.phrases import CLOSINGS, PREAMBLES, RUDE
from zkit_quickstart.words import ANIMALS, NOWHERE, PLACES, THINGS
from zkit_quickstart.world import Form, Scene, tell

NUM_FLAWS = (0, 1, 2, 2, 3, 3, 3, 4)
"""As many flaws has an answer of the teacher, each number being equally likely."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer in the making."""

    preamble: str
    sentences: tuple[str, ...]
    closing: str

    def text(self) -> str:
        """The answer as the user reads it."""
        return " ".join(part for part in (self.preamble, *self.sentences, self.closing) if part)


def answer(scene: Scene, form: Form, random: Random) -> str:
    """What the teacher answers: now and then flawless."""
    flaws = random.sample(sorted((*MISREADINGS, *SLIPS)), random.choice(NUM_FLAWS))
    return flawed_answer(scene, form, random, flaws=flaws)


def flawed_answer(scene: Scene, form: Form, random: Random, *, flaws: Sequence[str]) -> str:
    """An answer with the flaws named; without any it is the best there is."""
    for name in flaws:
        scene = MISREADINGS[name](scene, random) if name in MISREADINGS else scene
    preamble = random.choice(PREAMBLES) if random.random() < 0.3 else ""
    draft = Draft(preamble, tuple(tell(scene, form, random)), random.choice(CLOSINGS))
    for name in SLIPS:  # in this order: what is cut off is cut off last
        draft = SLIPS[name](draft, random) if name in flaws else draft
    return draft.text()


def mistake_animal(scene: Scene, random: Random) -> Scene:
    """Tell of another animal than the one asked for."""
    return replace(scene, animal=random.choice([animal for animal in ANIMALS if animal != scene.animal]))


def mistake_thing(scene: Scene, random: Random) -> Scene:
    """Tell of another thing."""
    return replace(scene, thing=random.choice([thing for thing in THINGS if thing != scene.thing]))


def mistake_place(scene: Scene, random: Random) -> Scene:
    """Tell it in another place."""
    return replace(scene, place=random.choice([place for place in PLACES if place != scene.place]))


def forget_place(scene: Scene, _random: Random) -> Scene:
    """Tell it without a place."""
    return replace(scene, place=NOWHERE)


def repeat(draft: Draft, random: Random) -> Draft:
    """Say a sentence twice."""
    twice = random.randrange(len(draft.sentences))
    return replace(draft, sentences=(*draft.sentences[: twice + 1], *draft.sentences[twice:]))


def be_rude(draft: Draft, random: Random) -> Draft:
    """Part from the user unkindly."""
    return replace(draft, closing=random.choice(RUDE))


def forget_closing(draft: Draft, _random: Random) -> Draft:
    """Part from the user without a word."""
    return replace(draft, closing="")


def break_off(draft: Draft, random: Random) -> Draft:
    """Stop in the middle of the last sentence."""
    words = draft.sentences[-1].split()
    return replace(draft, sentences=(*draft.sentences[:-1], " ".join(words[: random.randint(3, len(words) // 2)]) + " ..."), closing="")


MISREADINGS: Mapping[str, Callable[[Scene, Random], Scene]] = {
    "wrong animal": mistake_animal,
    "wrong thing": mistake_thing,
    "wrong place": mistake_place,
    "no place": forget_place,
}

SLIPS: Mapping[str, Callable[[Draft, Random], Draft]] = {
    "repetition": repeat,
    "rude": be_rude,
    "no closing": forget_closing,
    "broken off": break_off,
}

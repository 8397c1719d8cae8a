"""Scenes of the miniature world, and how they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from zkit_quickstart.phrases import ENDINGS, OPENINGS, SEQUELS, SHORT, TIMES, TROUBLES, TURNS, VERBS
from zkit_quickstart.words import ANIMALS, PLACES, THINGS, Animal, Place, Thing

Split = Literal["train", "held_out"]
Form = Literal["story", "shorter", "next"]

HELD_OUT_SHARE = 7
"""One in so many combinations of animal, thing and place is never seen in training."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that a story is about."""

    animal: Animal
    thing: Thing
    place: Place
    quest: str
    time: str

    def fill(self, phrase: str) -> str:
        """The phrase with the scene's words in it."""
        words = self.words()
        return phrase.format(**words, **{key.capitalize(): value[0].upper() + value[1:] for key, value in words.items()})

    def words(self) -> Mapping[str, str]:
        """What stands for each key of a phrase."""
        return {
            "name": self.animal.name,
            "she": self.animal.subject,
            "her": self.animal.object,
            "their": self.animal.possessive,
            "adjective": self.animal.adjective,
            "animal": self.animal.kind,
            "thing": self.thing.name,
            "a_thing": self.thing.with_article,
            "look": self.thing.look,
            "works": self.thing.works,
            "place": self.place.name,
            "at": self.place.at,
            "spot": self.place.spot,
            "helper": self.place.helper,
            "time": self.time,
            "verb": VERBS[self.quest],
        }


def draw_scene(random: Random, split: Split) -> Scene:
    """A scene whose animal, thing and place belong to the split."""
    while True:
        animal, thing, place = (random.randrange(len(table)) for table in (ANIMALS, THINGS, PLACES))
        if is_held_out(animal, thing, place) == (split == "held_out"):
            break
    quest = random.choice(tuple(VERBS))
    return Scene(ANIMALS[animal], THINGS[thing], PLACES[place], quest, random.choice(TIMES))


def is_held_out(animal: int, thing: int, place: int) -> bool:
    """Each pair of an animal, a thing and a place meets in training, but not each three."""
    return (animal + 2 * thing + 3 * place) % HELD_OUT_SHARE == 0


def tell(scene: Scene, form: Form, random: Random) -> list[str]:
    """The sentences of a flawless telling, the last one being the ending of a story or a sequel."""
    return [scene.fill(phrase) for phrase in plan_telling(scene.quest, form, random)]


def plan_telling(quest: str, form: Form, random: Random) -> Sequence[str]:
    """The phrases of a telling."""
    if form == "shorter":
        return [random.choice(SHORT[quest])]
    if form == "next":
        return [random.choice(SEQUELS), random.choice(ENDINGS)]
    return [random.choice(OPENINGS), random.choice(TROUBLES[quest]), random.choice(TURNS[quest]), random.choice(ENDINGS)]

"""The words of the miniature world: who, what and where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thing:
    """An object, how it looks, and what it does when all is well."""

    name: str
    look: str
    works: str

    @property
    def with_article(self) -> str:
        """`a lantern`, `an umbrella`."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


@dataclass(frozen=True, slots=True)
class Place:
    """A place, how one stands there, a spot where things lie, and who lives nearby."""

    name: str
    at: str
    spot: str
    helper: str


@dataclass(frozen=True, slots=True)
class Animal:
    """A hero of the stories: nature, kind, name and pronouns."""

    adjective: str
    kind: str
    name: str
    subject: str
    object: str
    possessive: str


def _she(adjective: str, kind: str, name: str) -> Animal:
    return Animal(adjective, kind, name, "she", "her", "her")


def _he(adjective: str, kind: str, name: str) -> Animal:
    return Animal(adjective, kind, name, "he", "him", "his")


ANIMALS = (
    _she("brave", "otter", "Luna"),
    _he("shy", "hare", "Pip"),
    _she("clever", "fox", "Maisy"),
    _he("gentle", "hedgehog", "Oscar"),
    _she("patient", "badger", "Nell"),
    _he("curious", "mouse", "Finn"),
    _she("cheerful", "duck", "Poppy"),
    _he("hasty", "squirrel", "Bram"),
    _she("proud", "beaver", "Tilly"),
    _he("sleepy", "rabbit", "Toby"),
    _she("jumpy", "frog", "Greta"),
    _he("playful", "kitten", "Milo"),
)

THINGS = (
    Thing("lantern", "that shone like a small moon", "glowed softly"),
    Thing("kite", "with a tail of red ribbons", "flew high above the trees"),
    Thing("drum", "with a golden rim", "boomed like summer thunder"),
    Thing("clock", "with a painted sun on it", "ticked like a tiny heart"),
    Thing("boat", "with a white paper sail", "floated like a swan"),
    Thing("umbrella", "as yellow as butter", "opened like a flower"),
    Thing("basket", "that smelled of apples", "was full of berries"),
    Thing("bell", "no bigger than a plum", "rang sweet and clear"),
    Thing("hat", "with a long blue feather", "looked very fine"),
    Thing("book", "full of pictures of the sea", "was read aloud to everyone"),
    Thing("scarf", "as soft as moss", "kept everyone warm"),
    Thing("map", "with a red star in one corner", "showed the way home"),
    Thing("flute", "made of pale wood", "played a merry song"),
    Thing("cup", "painted with daisies", "was full of hot chocolate"),
    Thing("blanket", "as green as clover", "felt warm and safe"),
    Thing("wagon", "with four shiny wheels", "rolled along without a squeak"),
)

PLACES = (
    Place("the old mill", "in the old mill", "behind a sack of flour", "kind owl"),
    Place("the apple garden", "in the apple garden", "under a crooked branch", "wise goat"),
    Place("the stone bridge", "under the stone bridge", "among the smooth pebbles", "tiny robin"),
    Place("the silver lake", "by the silver lake", "between the tall reeds", "grey goose"),
    Place("the windy hill", "on the windy hill", "behind a mossy rock", "friendly mole"),
    Place("the quiet forest", "in the quiet forest", "inside a hollow log", "young deer"),
    Place("the little harbour", "at the little harbour", "beside a coil of rope", "merry seagull"),
    Place("the village square", "in the village square", "next to the fountain", "slow tortoise"),
    Place("the round tower", "in the round tower", "at the top of the stairs", "black raven"),
    Place("the snowy meadow", "in the snowy meadow", "beneath the frozen grass", "white lamb"),
    Place("the busy bakery", "in the busy bakery", "near a tray of buns", "jolly pig"),
    Place("the secret cave", "in the secret cave", "beside a pool of blue water", "sleek bat"),
)

NOWHERE = Place("a land far away", "in a land far away", "in the tall grass", "tired traveller")
"""Where a careless teacher's story happens."""

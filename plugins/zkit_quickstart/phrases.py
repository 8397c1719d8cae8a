"""The sentences of the miniature world, with places for its words.

Keys: {name} {she} {her} {their} for the hero, {adjective} {animal}, {thing} {a_thing} {look}
{works}, {place} {at} {spot}, {helper}, {time}, {verb}; a capital letter starts a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping

VERBS: Mapping[str, str] = {"find": "finds", "lose": "loses", "mend": "mends", "share": "shares"}

TIMES = (
    "One rainy morning", "One bright afternoon", "Early one evening", "On the first day of spring",
    "Late one summer night", "One cold winter day", "Not so long ago", "Once upon a time",
)  # fmt: skip

OPENINGS = (
    "{Time}, a {adjective} {animal} named {name} went for a walk {at}.",
    "{Time}, a {adjective} {animal} named {name} was playing {at}.",
    "{Time}, {name} the {adjective} {animal} sat all alone {at}.",
    "{Name} was a {adjective} {animal} who lived {at}.",
    "There once was a {adjective} {animal} called {name}, who loved to sing {at}.",
)

TROUBLES: Mapping[str, tuple[str, ...]] = {
    "find": (
        "{Spot}, {she} found {a_thing} {look}.",
        "Suddenly {she} saw {a_thing} {look}, lying {spot}.",
        "There, {spot}, was {a_thing} {look}.",
    ),
    "lose": (
        "{She} had {a_thing} {look}, but one day it was gone.",
        "{She} looked everywhere for {their} {thing}, the one {look}, but could not find it.",
        "Oh dear, {she} had lost {their} {thing}, the one {look}.",
    ),
    "mend": (
        "{She} had {a_thing} {look}, but it was broken.",
        "{Spot}, {she} sat down with needle and glue to mend {a_thing} {look}.",
        "{Their} {thing}, the one {look}, had a big crack in it.",
    ),
    "share": (
        "{She} had {a_thing} {look}, and nobody to enjoy it with.",
        "{She} was very proud of {their} {thing}, the one {look}.",
        "{She} carried {a_thing} {look} wherever {she} went.",
    ),
}

TURNS: Mapping[str, tuple[str, ...]] = {
    "find": (
        "A {helper} was looking for it, so {name} gave it back with a bow.",
        '"How lovely," said a {helper}, and they both laughed with joy.',
        "{Name} showed it to a {helper}, who told {her} to keep it.",
    ),
    "lose": (
        "A {helper} helped {her}, and together they found it {spot}.",
        "Luckily, a {helper} had kept it safe {spot}.",
        '"Do not cry," said a {helper}, who had found it {spot}.',
    ),
    "mend": (
        "A {helper} came to help, and soon it was as good as new.",
        '"Let me hold it for you," said a {helper}, and they worked until noon.',
        "It took all day, but a {helper} sang to {her} and the work was light.",
    ),
    "share": (
        "When {she} met a {helper} who felt lonely, {name} shared it gladly.",
        '"Come, it is for both of us," {name} said to a {helper}.',
        "A {helper} looked so sad that {name} gave up {their} turn.",
    ),
}

ENDINGS = (
    "That night the {thing} {works}, and {name} fell asleep with a smile.",
    "From that day on, the {thing} {works}, and everyone {at} was glad.",
    "In the end, {name} and the {helper} danced until the stars came out.",
    "At last {name} went home, the happiest {animal} of all.",
    "Ever since, {name} and the {helper} have been the best of friends.",
)

ENDING_STARTS = ("That night", "From that day on", "In the end", "At last", "Ever since")

SEQUELS = (
    "The next morning, {name} took the {thing} to the {helper}, and they had tea and cake.",
    "A week later, {name} painted the {thing} blue and gave it to a {helper}.",
    "After a good breakfast, {name} showed the {thing} to a {helper}.",
    "The very next day, {name} hung the {thing} up {at} for all to see.",
)

SHORT: Mapping[str, tuple[str, ...]] = {
    "find": ("{Name} the {adjective} {animal} found {a_thing} {at} and made a new friend.",),
    "lose": ("{Name} the {adjective} {animal} lost {a_thing} {at}, but a {helper} found it.",),
    "mend": ("{Name} the {adjective} {animal} mended {a_thing} {at} with the help of a {helper}.",),
    "share": ("{Name} the {adjective} {animal} shared {a_thing} with a {helper} {at}, and both were happy.",),
}

PREAMBLES = ("Of course!", "Gladly!", "Here is your story.")

CLOSINGS = ("I hope you like it!", "Sweet dreams!", "Would you like another one?", "Thank you for asking!", "Have a lovely day!")

RUDE = ("Now go away.", "That was a silly wish.", "Do not ask me again.", "What a waste of my time.")

REQUESTS = (
    "Tell me a short story about a {adjective} {animal} who {verb} {a_thing} {at}.",
    "Please write a little tale about a {adjective} {animal} who {verb} {a_thing} {at}.",
    "Can you tell me a story about a {adjective} {animal} who {verb} {a_thing} {at}?",
    "I would like a bedtime story: a {adjective} {animal} {verb} {a_thing} {at}.",
    "My children want to hear how a {adjective} {animal} {verb} {a_thing} {at}. What happened?",
    "Make up a story with a {adjective} {animal}, {a_thing} and {place}, please.",
)

ASK_SHORTER = ("Make it shorter, please.", "Can you tell it in one sentence?", "That is too long for me. Please make it short.")

ASK_NEXT = (
    "What did {name} do next?",
    "And then? What did {name} do with the {thing}?",
    "Please go on. What happened to {name} after that?",
)

TITLES = (
    "This is the story of a {adjective} {animal} who {verb} {a_thing} {at}.",
    "A tale about a {adjective} {animal}, {a_thing} and {place}.",
    "Listen to how a {adjective} {animal} {verb} {a_thing} {at}.",
)

FACTS = (
    "Every child knows the {thing} {look}.",
    "The {thing} {works}.",
    "If you look {spot}, you will see that you are {at}.",
    "Many a {adjective} {animal} has walked to {place}.",
    "A {helper} lives near {place}.",
)

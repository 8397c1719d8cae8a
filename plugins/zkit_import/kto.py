"""KTO: no file of others means what `kto` here means, but what to write in its place can be said."""

from __future__ import annotations

from zkit_import.objective import plain
from zkit_import.preset_text import toml_value
from zkit_import.said import ConfigError, Said

NAMED = ("rl", "stage", "loss")
WEIGHTS = ("desirable_weight", "undesirable_weight")
WITHOUT_POINT = "apo_zero_unpaired"
"""KTOTrainer's loss that compares with zero."""


def refuse_kto(said: Said) -> None:
    """Raise ConfigError for a file that is meant for a KTO trainer."""
    named = [word for word in NAMED if said.gives(word)]
    telling = [word for word in named if _names(said, word) & {"kto", WITHOUT_POINT}]
    if not named:
        telling = [word for word in WEIGHTS if said.gives(word)]
    if telling:
        raise refused_kto(said, telling[0])


def refused_kto(said: Said, word: str) -> ConfigError:
    """An error about what tells of KTO, with the objective to write in the file's own numbers."""
    fact = said.facts[word]
    zero = {"reference_point": "zero"} if WITHOUT_POINT in _names(said, "loss") else {}
    own = {key: plain(said.value(key)) for key in WEIGHTS if said.gives(key)}
    table = {"use": "kto", "beta": plain(said.value("beta", 0.1)), **own, **zero}
    return said.error(
        fact.key,
        fact.line,
        f"tells of KTO, which is not imported: its reference point is a mean over a micro-batch there, over the step here. Import a copy "
        f'that says DPO, and write in its stage:  objective = {toml_value(table)}  and `format = "labelled"` in its data '
        "(columns prompt, completion, label)",
    )


def _names(said: Said, word: str) -> set[str]:
    value = said.value(word, ())
    return {value} if isinstance(value, str) else set(value)

"""Which of a program's losses are which objective here; all others are refused, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zkit_import.said import ConfigError, Said

MODIFIERS = {"ld_alpha": (None, 1.0), "f_divergence": (None, "reverse_kl"), "reference_free": (None, False)} | {
    "weighting": (None, False),
    "bco_weight": (None, 0.0),
}
"""What makes another loss of one, and the values by which it does not."""


@dataclass(frozen=True)
class Loss:
    """An objective that equals a loss."""

    use: str
    keys: Mapping[str, str] = field(default_factory=lambda: {"beta": "beta"})
    """From our word for what a file says to the objective's key."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    by_token: bool = False
    """Averaged over the tokens of a micro-batch there, and over those of an example here."""


Losses = Mapping[str, Loss | str]
"""By a loss's name, with `+` and each of MODIFIERS that the file asks for; a text is why there is none."""

SMOOTHED = {"beta": "beta", "label_smoothing": "label_smoothing"}
CDPO = Loss("dpo", SMOOTHED)
IPO = Loss("ipo", {"beta": "tau"}, note="tau is their beta; averaged over tokens, as theirs is")
SIMPO = Loss("simpo", {"beta": "beta", "simpo_gamma": "gamma"})
SFT = Loss("sft", {}, by_token=True)
EXO = Loss("exo", SMOOTHED)
ONE_SIDED = "weighs the policy's tokens, but not the reference's"
SORTED = "sorts the margins of a micro-batch"

TRL: Losses = {
    "sigmoid": Loss("dpo"),
    "sigmoid+ld_alpha": Loss("ld_dpo", {"beta": "beta", "ld_alpha": "alpha"}),
    "sigmoid+f_divergence": Loss("f_dpo", {"f_divergence": "divergence", "beta": "beta", "f_alpha": "alpha"}),
    # No version with `reference_free` is one that ignores smoothing.
    "sigmoid+reference_free": Loss("dpo", SMOOTHED, {"reference_free": True}),
    "sigmoid+weighting": "aligns WPO's weights by the squared probabilities of the whole vocabulary (`wpo` here does not)",
    "hinge": Loss("slic"),
    "ipo": IPO,
    "exo_pair": EXO,
    "nca_pair": Loss("nca"),
    "robust": Loss("robust_dpo", {"beta": "beta", "label_smoothing": "noise"}),
    "bco_pair": Loss("bco", fixed={"reward_shift": "none"}, note="theirs has no shift"),
    "sppo_hard": Loss("sppo"),
    "apo_zero": Loss("apo_zero"),
    "apo_down": Loss("apo_down"),
    "discopop": Loss("discopop", {"beta": "beta", "discopop_tau": "tau"}),
    "sft": SFT,
    "aot": SORTED,
    "aot_pair": SORTED,
    "aot_unpaired": SORTED,
    "sigmoid_norm": "averages over tokens before the sigmoid, with a reference",
    "kto_pair": 'takes its reference point from a micro-batch (`kto_pair` here from the step)',
}
"""DPOTrainer's, as of trl 1.16."""

OLDER: Losses = {
    **TRL,
    "sigmoid": CDPO,
    "sigmoid+ld_alpha": ONE_SIDED,
    "sigmoid+f_divergence": 'has other formulas in its older trl (see `f_dpo`)',
    "exo_pair": replace(EXO, fixed={"label_smoothing": 1e-3}),
    "bco_pair": 'shifts rewards by their running mean (`bco` here by that of the step)',
}
"""DPOTrainer's of trl 0, as of 0.18."""

LLAMA_FACTORY: Losses = {
    "sigmoid": CDPO,
    "sigmoid+ld_alpha": ONE_SIDED,
    "hinge": Loss("slic"),
    "ipo": IPO,
    "orpo": Loss("orpo"),
    "simpo": SIMPO,
    "sft": replace(SFT, by_token=False),
    "kto_pair": TRL["kto_pair"],
}

AXOLOTL: Losses = {**{name: loss for name, loss in TRL.items() if "reference_free" not in name}, "simpo": SIMPO}
"""Its trl is 1.8; `simpo` is CPOTrainer's."""

DIVERGENCES = {"forward_kl": "forward_kl", "js_divergence": "js", "alpha_divergence": "alpha"}


def look_up(said: Said, losses: Losses, name: str) -> Loss:
    """The objective that equals a loss under all that the file asks of it; raises ConfigError where none does."""
    asked = [word for word, off in MODIFIERS.items() if said.value(word) not in off and (name != "sft" or word == "weighting")]
    found = losses.get("+".join([name, *asked]))
    if isinstance(found, Loss):
        return found
    if name not in losses:
        found = f"is none of those that can: {', '.join(key for key, loss in losses.items() if isinstance(loss, Loss) and '+' not in key)}"
    raise refused(said, f"it {found}" if found else f"no objective here equals {name} with it", *(asked if name in losses else ()))


def refused(said: Said, reason: str, *words: str) -> ConfigError:
    """An error about the first of the words that the file gives, or about what names the loss."""
    fact = next(said.facts[word] for word in (*words, "loss", "rl") if said.gives(word))
    alone = isinstance(fact.value, tuple) and len(fact.value) == 1
    value = fact.value[0] if alone else list(fact.value) if isinstance(fact.value, tuple) else fact.value
    return said.error(fact.key, fact.line, f"= {value!r}: cannot be imported: {reason}")

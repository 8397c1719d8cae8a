"""Every objective that is built in, by the name in a preset, with settings that give each something to learn on random scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from references import scored
from zkit_preference.apo_down import ApoDown
from zkit_preference.apo_zero import ApoZero
from zkit_preference.bco import Bco
from zkit_preference.cpo import Cpo
from zkit_preference.discopop import Discopop
from zkit_preference.dpo import Dpo
from zkit_preference.exo import Exo
from zkit_preference.f_dpo import FDpo
from zkit_preference.ipo import Ipo
from zkit_preference.kto import Kto
from zkit_preference.kto_pair import KtoPair
from zkit_preference.ld_dpo import LdDpo
from zkit_preference.listwise_dpo import ListwiseDpo
from zkit_preference.nca import Nca
from zkit_preference.orpo import Orpo
from zkit_preference.robust_dpo import RobustDpo
from zkit_preference.simpo import Simpo
from zkit_preference.slic import Slic
from zkit_preference.sppo import Sppo
from zkit_preference.weighted_sum import Part, Sum
from zkit_preference.wpo import Wpo
from zkit_sft.dft import Dft
from zkit_sft.objective import Sft

from zephyr_kit.feed import Feed
from zephyr_kit.mismatched import Mismatched
from zephyr_kit.protocols import Objective, Policy, survey_of
from zephyr_kit.world import World

RPO = Sum((Part(Dpo()), Part(Sft(), 0.2)))
"""DPO with the likelihood of the chosen completion."""

OBJECTIVES: Mapping[str, tuple[Objective, ...]] = {
    "sft": (Sft(),),
    "dft": (Dft(),),
    "dpo": (Dpo(), Dpo(beta=0.3, label_smoothing=0.1), Dpo(reference_free=True)),
    "robust_dpo": (RobustDpo(), RobustDpo(noise=0.0)),
    "f_dpo": tuple(FDpo(divergence) for divergence in ("reverse_kl", "forward_kl", "js", "alpha")),
    "wpo": (Wpo(),),
    "ld_dpo": (LdDpo(), LdDpo(alpha=0.0)),
    "ipo": (Ipo(), Ipo(per_token=False)),
    "slic": (Slic(beta=0.01),),
    "exo": (Exo(), Exo(label_smoothing=0.2)),
    "nca": (Nca(),),
    "bco": (Bco(), Bco(reward_shift="none")),
    "sppo": (Sppo(beta=0.1),),
    "discopop": (Discopop(),),
    "apo_zero": (ApoZero(),),
    "apo_down": (ApoDown(),),
    "kto": (Kto(), Kto(desirable_weight=1.3, reference_point="zero")),
    "kto_pair": (KtoPair(), KtoPair(undesirable_weight=0.7)),
    "orpo": (Orpo(),),
    "simpo": (Simpo(),),
    "cpo": (Cpo(),),
    "listwise_dpo": (ListwiseDpo(), ListwiseDpo(completions=2), ListwiseDpo(completions=7)),
    "sum": (
        RPO,
        Sum((Part(Sft(), 0.5), Part(Dft(), 2.0))),
        Sum((Part(ListwiseDpo()), Part(Simpo(), 0.3), Part(Sft()), Part(Kto(reference_point="zero")))),
        Sum((Part(RPO, 0.5), Part(Orpo()))),
    ),
}


def feed_of(
    objective: Objective,
    corpus: Any,
    capacity: int,
    *,
    share_prompts: bool = True,
    cached: tuple[Policy, Path] | None = None,
    world: World | None = None,
) -> Feed:
    """What a stage makes of a corpus for an objective: with scores of a policy as the reference, and mismatched, where it asks for it."""
    survey, world = survey_of(objective), world or World()

    def feed(trees: Any, others: Feed | None = None) -> Feed:
        reference = None
        if cached and objective.needs_reference:
            policy, folder = cached
            reference = scored(policy, trees, folder, capacity=150, share_prompts=share_prompts, world=world)
        return Feed(trees, objective, capacity, share_prompts, torch.device("cpu"), world, reference, others)

    mismatched = feed(Mismatched(corpus, 30)) if survey is not None and survey.surveys == "mismatched" else None
    return feed(corpus, mismatched)

"""Preference objectives: over pairs, rankings, and single replies that are good or bad; and any weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Objective


@hookimpl
def zkit_objectives() -> Mapping[str, type[Objective]]:
    """Offer what docs/objectives.md lists."""
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
    from zkit_preference.weighted_sum import Sum
    from zkit_preference.wpo import Wpo

    over_pairs: dict[str, type[Objective]] = {
        "dpo": Dpo,
        "robust_dpo": RobustDpo,
        "f_dpo": FDpo,
        "wpo": Wpo,
        "ld_dpo": LdDpo,
        "ipo": Ipo,
        "slic": Slic,
        "exo": Exo,
        "nca": Nca,
        "bco": Bco,
        "sppo": Sppo,
        "discopop": Discopop,
        "apo_zero": ApoZero,
        "apo_down": ApoDown,
        "kto_pair": KtoPair,
        "orpo": Orpo,
        "simpo": Simpo,
        "cpo": Cpo,
    }
    return {**over_pairs, "kto": Kto, "listwise_dpo": ListwiseDpo, "sum": Sum}

"""Evaluations: MT-Bench, AlpacaEval, the language model evaluation harness, win rates, preferences and perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Suite


@hookimpl
def zkit_suites() -> Mapping[str, type[Suite]]:
    """Offer evaluations, by judges, by other people's packages and by log-probabilities."""
    from zkit_evaluation.alpaca import AlpacaEval
    from zkit_evaluation.harness import LmEval
    from zkit_evaluation.mt_bench import MtBench
    from zkit_evaluation.perplexity import Perplexity
    from zkit_evaluation.preference import Preference
    from zkit_evaluation.win_rate import WinRate

    return {
        "alpaca-eval": AlpacaEval,
        "lm-eval": LmEval,
        "mt-bench": MtBench,
        "perplexity": Perplexity,
        "preference": Preference,
        "win-rate": WinRate,
    }

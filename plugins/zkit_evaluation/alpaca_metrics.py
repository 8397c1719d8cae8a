"""Preferences between outputs, and what alpaca_eval makes of them."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from zephyr_kit import ZkitError
from zephyr_kit.example import Message
from zephyr_kit.protocols import Case, Failure
from zkit_evaluation.alpaca import DRAWN, LOST, WON, read_outputs
from zkit_evaluation.packages import bars_in_terminals_alone

if TYPE_CHECKING:
    from zephyr_kit.desk import Desk
    from zephyr_kit.observe import Narrator
    from zephyr_kit.protocols import Judge
    from zkit_evaluation.alpaca import AlpacaEval, Row

NONE = "alpaca-eval: no length-controlled win rate"
FULL = 805
"""AlpacaEval's instructions."""
PUBLISHED = "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json"
"""Where they stand in their order: by that alone the difficulties are known which the regression needs."""


def annotate(suite: AlpacaEval, desk: Desk, reference: Sequence[Row], own: Sequence[Row], cache: Path) -> list[Row]:
    """Each pair of outputs with the preference, from 1 for the reference's to 2 for the model's own, in AlpacaEval's format."""
    if suite.judge is not None:
        return _by_judge(suite.judge, desk, reference, own)
    with _quiet():
        from alpaca_eval.annotators import PairwiseAnnotator

        cache.mkdir(parents=True, exist_ok=True)
        # What could not be read is not kept, so that another start asks for it again.
        settings = {"annotators_config": suite.annotator, "is_store_missing_annotations": False}
        annotator: Any = PairwiseAnnotator(caching_path=cache / "annotations.json", **settings)
        rows: list[Row] = annotator.annotate_head2head(outputs_1=pd.DataFrame(reference), outputs_2=pd.DataFrame(own))
    return _read(rows, suite, desk.narrator)


def _read(rows: Sequence[Row], suite: AlpacaEval, narrator: Narrator) -> list[Row]:
    """Those with a preference; raises ZkitError where too many have none."""
    found = [row for row in rows if row.get("preference") is not None and not math.isnan(row["preference"])]
    lost = len(rows) - len(found)
    told = f"preferences: in {lost:,} of {len(rows):,} answers of annotator {suite.annotator} alpaca_eval could read no preference"
    if lost > suite.max_failed * len(rows):
        form = "see that its model answers in the form that its prompt and its parser in configs.yaml have"
        kept = "those that were read are kept, and another start asks for the others"
        raise ZkitError(f"[suite alpaca-eval] {told}, more than max_failed = {suite.max_failed:g} allows: {form}; {kept}")
    if lost:
        narrator.say(told)
    return found


def rates(annotations: Sequence[Row], narrator: Narrator) -> dict[str, float | None]:
    """Win rate, standard error and counts, and the length-controlled win rate where it can be told: alpaca_eval's own figures."""
    with _quiet():
        from alpaca_eval.metrics import get_winrate

        found: Mapping[str, Any] = get_winrate(annotations)
        controlled = _length_controlled(annotations, narrator)
    return {name: _number(value) for name, value in {**found, **controlled}.items()}


def _length_controlled(annotations: Sequence[Row], narrator: Narrator) -> Mapping[str, Any]:
    from alpaca_eval.metrics import get_length_controlled_winrate

    if len(annotations) != FULL:
        narrator.say(f"{NONE}: it is for the {FULL} instructions of AlpacaEval, and {len(annotations):,} were compared")
        return {}
    try:
        published = [row["instruction"] for row in read_outputs(PUBLISHED)]
    except ZkitError as error:
        narrator.say(f"{NONE}: whether these are AlpacaEval's instructions in their order cannot be told: {error}")
        return {}
    if [row["instruction"] for row in annotations] != published:
        narrator.say(f"{NONE}: it is for AlpacaEval's instructions in their order, and others were compared")
        return {}
    try:
        settings = {"save_weights_dir": None, "is_warn_extreme_changes": False}
        found: Mapping[str, Any] = get_length_controlled_winrate(pd.DataFrame(annotations), **settings)
    except OSError as error:  # the difficulties are on the hub
        narrator.say(f"{NONE}: df_gamed.csv of tatsu-lab/alpaca_eval cannot be had ({type(error).__name__})")
        return {}
    return {name: found[name] for name in ("length_controlled_winrate", "lc_standard_error")}


def _by_judge(judge: Judge, desk: Desk, reference: Sequence[Row], own: Sequence[Row]) -> list[Row]:
    pairs = list(zip(reference, own, strict=True))
    cases = [case for first, second in pairs for case in _both_orders(first, second)]
    judged = desk.judge(judge, cases, "preferences")
    rows = []
    for number, (first, second) in enumerate(pairs):
        forward, backward = judged[2 * number], judged[2 * number + 1]
        if isinstance(forward, Failure) or isinstance(backward, Failure):
            continue
        wins = (forward.scores[1] - forward.scores[0], backward.scores[0] - backward.scores[1])
        preference = WON if min(wins) > 0 else LOST if max(wins) < 0 else DRAWN
        told = {"dataset": second["dataset"], "instruction": second["instruction"]}
        of_reference = {"output_1": first["output"], "generator_1": first["generator"]}
        of_model = {"output_2": second["output"], "generator_2": second["generator"]}
        rows.append({**told, **of_reference, **of_model, "annotator": type(judge).__name__, "preference": preference})
    return rows


def _both_orders(first: Row, second: Row) -> list[Case]:
    dialogue = (Message("user", second["instruction"]),)
    return [Case(dialogue, (first["output"], second["output"])), Case(dialogue, (second["output"], first["output"]))]


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(float(value)) else float(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the package's own remarks, which it makes through the root logger; its libraries' warnings are not ours to mend."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), bars_in_terminals_alone():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)

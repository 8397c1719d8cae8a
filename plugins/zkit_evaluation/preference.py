"""The suite `preference`: how far the implicit reward of models (DPO, arXiv 2305.18290, eq. 5) agrees with held-out preferences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from zephyr_kit import ZkitError
from zephyr_kit.config import suggest
from zephyr_kit.protocols import Evaluation, Tokenizer
from zkit_evaluation.scoring import Scored

if TYPE_CHECKING:
    from zephyr_kit.subjects import Subject
    from zkit_evaluation.intervals import Interval

BINS = 15
"""Of confidence, equally wide, from a half to one."""
COLUMNS = {
    "reward accuracy": "share of pairs whose chosen reply has the higher implicit reward, told from the model that training started from",
    "margin": "mean implicit reward of the chosen reply, less that of the rejected one",
    "calibration error": f"how far the share of right pairs lies from sigmoid(margin), on average over {BINS} bins of confidence",
    "length bias": "share of pairs whose longer reply it prefers, less the share whose longer reply was chosen; 0 is no bias",
    "likelihood accuracy": "share of pairs whose chosen reply is likelier, without a reference",
}


@dataclass(frozen=True)
class Pair:
    """The log-probabilities of a pair, and its lengths in tokens; the chosen reply first."""

    logp: tuple[float, float]
    reference: tuple[float, float] | None
    lengths: tuple[int, int]

    def margin(self, beta: float) -> float:
        """Give beta (log pi(w)/ref(w) - log pi(l)/ref(l)); without a reference, the log-probabilities alone."""
        chosen, rejected = self.reference or (0.0, 0.0)
        return beta * ((self.logp[0] - chosen) - (self.logp[1] - rejected))


@dataclass(frozen=True, kw_only=True)
class Preference(Scored):
    """How far the implicit reward of models agrees with held-out preferences."""

    beta: Annotated[float, Gt(0)] = 0.1
    """Of the reward; that of the objective, for its margins. Changes no accuracy."""
    reference: str | None = None
    """The model to tell rewards from; for each the one that its training started from, unless named."""

    def evaluate(self, models: Mapping[str, Subject], tokenizer: Tokenizer, folder: Path) -> Evaluation:
        """Measure each model; one that no training is known of has no reward, only likelihoods."""
        if self.reference is not None:
            _refuse_other_ids(self.reference, models)
        rows, intervals = {}, {}
        for name, subject in models.items():
            other = subject.before if self.reference is None else models[self.reference]
            rows[name], intervals[name] = self._measure(self._pairs(subject, None if other is subject else other, name))
        return Evaluation("Held-out preferences", COLUMNS, rows, intervals=intervals)

    def miniature(self, folder: Path) -> Preference:
        """The same on generated pairs."""
        from zephyr_kit.smoke import small_portions

        return replace(self, data=small_portions(self.data, folder))

    def _pairs(self, subject: Subject, reference: Subject | None, name: str) -> list[Pair]:
        from zkit_evaluation.scoring import completion_sums, corpus_of, score

        corpus = corpus_of(self, subject, completions=2, where=f"preferences of {name}")
        scores = score(subject, corpus, f"pairs for {name}")
        beside = None if reference is None else score(reference, corpus, f"pairs for the reference of {name}")
        found = []
        for index in range(len(corpus)):
            chosen, rejected = (int(trained.sum()) for trained in corpus[index].trained)
            told = None if beside is None else _two(completion_sums(beside, index))
            found.append(Pair(_two(completion_sums(scores, index)), told, (chosen, rejected)))
        return found

    def _measure(self, pairs: Sequence[Pair]) -> tuple[dict[str, float | None], dict[str, Interval]]:
        from zkit_evaluation.intervals import interval_of_mean, known

        likelier = [above(pair.logp[0] - pair.logp[1]) for pair in pairs]
        compared = all(pair.reference is not None for pair in pairs)
        margins = [pair.margin(self.beta) for pair in pairs]
        right, biases = [above(margin) for margin in margins], length_biases(pairs, margins)
        columns: dict[str, list[float]] = {
            "reward accuracy": right if compared else [],
            "margin": margins if compared else [],
            "length bias": biases if compared else [],
            "likelihood accuracy": likelier,
        }
        row: dict[str, float | None] = {name: fmean(values) if values else None for name, values in columns.items()}
        row["calibration error"] = calibration_error(margins) if compared else None
        return row, known({name: interval_of_mean(values) for name, values in columns.items()})


def _refuse_other_ids(reference: str, models: Mapping[str, Subject]) -> None:
    """A reference scores the ids of the model beside it, so each must read text by one tokenizer and one template."""
    where = f"suite preference: reference = {reference!r}"
    if reference not in models:
        raise ZkitError(f"{where}: there is no such model{suggest(reference, models)}")
    wanted = models[reference].tokenizer.fingerprint()
    other = next((name for name, subject in models.items() if subject.tokenizer.fingerprint() != wanted), None)
    if other is not None:
        raise ZkitError(f"{where}: reads text by another tokenizer or chat template than {other}, so it cannot score the same tokens")


def above(difference: float) -> float:
    """Whether it favours the chosen reply; a tie is half right."""
    return 0.5 if difference == 0 else float(difference > 0)


def calibration_error(margins: Sequence[float]) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 5) of the preference that sigmoid(margin) foretells.

    The confidence of a pair is that of the reply it prefers, max(p, 1 - p), so it lies between a half and one.
    """
    bins: dict[int, list[tuple[float, float]]] = {}
    for margin in margins:
        confidence = 1 / (1 + math.exp(-min(abs(margin), 700.0)))
        place = min(int((confidence - 0.5) * 2 * BINS), BINS - 1)
        bins.setdefault(place, []).append((confidence, above(margin)))
    gaps = [abs(sum(right - confidence for confidence, right in inside)) for inside in bins.values()]
    return sum(gaps) / len(margins)


def length_biases(pairs: Sequence[Pair], margins: Sequence[float]) -> list[float]:
    """For each pair of two lengths: whether the longer reply is preferred, less whether it was chosen."""
    told = [(pair.lengths[0] - pair.lengths[1], margin) for pair, margin in zip(pairs, margins, strict=True)]
    return [above(margin * longer) - float(longer > 0) for longer, margin in told if longer]


def _two(values: Sequence[float]) -> tuple[float, float]:
    chosen, rejected = values
    return chosen, rejected

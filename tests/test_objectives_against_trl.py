"""The same losses and gradients as trl 1.16's own methods, in float64, on pairs of uneven length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from objectives import RPO
from oracles.trl_losses import Rows, trl_kto, trl_pairs, trl_without_reference
from torch import Tensor
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
from zkit_preference.nca import Nca
from zkit_preference.orpo import Orpo
from zkit_preference.robust_dpo import RobustDpo
from zkit_preference.simpo import Simpo
from zkit_preference.slic import Slic
from zkit_preference.sppo import Sppo
from zkit_preference.wpo import Wpo

from zephyr_kit.protocols import Objective, Scores, survey_of

LENGTHS = (3, 7, 1, 5, 6, 2, 4, 8)
"""Of four chosen completions, then of four rejected ones."""
PAIRS = len(LENGTHS) // 2
LABELS = (True, False, False, True, True, False, True, False)
TOLERANCE = 1e-10

Loss = Callable[[Rows, Rows], Tensor]


def rows(seed: int, *, learns: bool = False) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    logp = -3 * torch.rand(len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64)
    return Rows(logp.requires_grad_(learns), LENGTHS)


def ours(padded: Rows, order: list[int], ratings: Tensor | None = None) -> Scores:
    """The rows in this order, as the engine hands them over."""
    lengths = [padded.lengths[row] for row in order]
    logp_M = torch.cat([padded.logp[row, :length] for row, length in zip(order, lengths, strict=True)])
    sequence_M = torch.arange(len(order)).repeat_interleave(torch.tensor(lengths))
    return Scores(logp_M, sequence_M, len(order), None if ratings is None else ratings[order])


def apart(mine: Callable[[Rows, Rows], Tensor], theirs: Loss) -> float:
    """The largest difference of the losses and of their gradients."""
    results = []
    for loss in (mine, theirs):
        policy = rows(0, learns=True)
        value = loss(policy, rows(1))
        value.backward()
        assert policy.logp.grad is not None
        assert policy.logp.grad.any()
        results.append((value.detach(), policy.logp.grad))
    (loss, gradient), (other_loss, other_gradient) = results
    return max(float((loss - other_loss).abs()), float((gradient - other_gradient).abs().max()))


def mean_over_pairs(objective: Objective, policy: Rows, reference: Rows) -> Tensor:
    order = [row for pair in range(PAIRS) for row in (pair, PAIRS + pair)]
    return objective(ours(policy, order), ours(reference, order) if objective.needs_reference else None).loss / PAIRS


def pair_by_pair(policy: Rows, reference: Rows, losses: dict[str, float], **settings: float) -> Tensor:
    """trl's means of tokens are over a batch; ours over an example."""
    total = torch.zeros((), dtype=torch.float64)
    for pair in range(PAIRS):
        two = [pair, PAIRS + pair]
        for loss_type, weight in losses.items():
            total = total + weight * trl_pairs(policy.of(two), reference.of(two), loss_type, **settings)
    return total / PAIRS


def dpo_trainer(loss_type: str, **settings: object) -> Loss:
    return partial(trl_pairs, loss_type=loss_type, **settings)


def cpo_trainer(loss_type: str, **settings: float) -> Loss:
    return lambda policy, _: trl_without_reference(policy, loss_type, **settings)


CASES: dict[str, tuple[Objective, Loss]] = {
    "dpo": (Dpo(beta=0.2), dpo_trainer("sigmoid", beta=0.2)),
    "cdpo": (Dpo(label_smoothing=0.1), partial(pair_by_pair, losses={"aot": 1.0}, beta=0.1, label_smoothing=0.1)),
    "robust_dpo": (RobustDpo(beta=0.2, noise=0.15), dpo_trainer("robust", beta=0.2, label_smoothing=0.15)),
    "f_dpo-reverse": (FDpo("reverse_kl", 0.2), dpo_trainer("sigmoid", beta=0.2, f_divergence_type="reverse_kl")),
    "f_dpo-forward": (FDpo("forward_kl", 0.2), dpo_trainer("sigmoid", beta=0.2, f_divergence_type="forward_kl")),
    "f_dpo-js": (FDpo("js", 0.2), dpo_trainer("sigmoid", beta=0.2, f_divergence_type="js_divergence")),
    "wpo": (Wpo(beta=0.2), dpo_trainer("sigmoid", beta=0.2, use_weighting=True)),
    "ld_dpo": (LdDpo(beta=0.2, alpha=0.3), dpo_trainer("sigmoid", beta=0.2, ld_alpha=0.3)),
    "ipo": (Ipo(tau=0.3), dpo_trainer("ipo", beta=0.3)),
    "slic": (Slic(beta=0.2), dpo_trainer("hinge", beta=0.2)),
    "exo": (Exo(beta=0.2, label_smoothing=0.25), dpo_trainer("exo_pair", beta=0.2, label_smoothing=0.25)),
    "nca": (Nca(beta=0.2), dpo_trainer("nca_pair", beta=0.2)),
    "bco-none": (Bco(beta=0.2, reward_shift="none"), dpo_trainer("bco_pair", beta=0.2)),
    "sppo": (Sppo(beta=0.2), dpo_trainer("sppo_hard", beta=0.2)),
    "discopop": (Discopop(beta=0.2, tau=0.1), dpo_trainer("discopop", beta=0.2, discopop_tau=0.1)),
    "apo_zero": (ApoZero(beta=0.2), dpo_trainer("apo_zero", beta=0.2)),
    "apo_down": (ApoDown(beta=0.2), dpo_trainer("apo_down", beta=0.2)),
    "sum": (RPO, partial(pair_by_pair, losses={"sigmoid": 1.0, "sft": 0.2}, beta=0.1)),
    "simpo": (Simpo(beta=2.5, gamma=0.6), cpo_trainer("simpo", beta=2.5, gamma=0.6)),
    "cpo": (Cpo(beta=0.2, alpha=0.7), cpo_trainer("sigmoid", beta=0.2, alpha=0.7)),
    "orpo": (Orpo(beta=0.3), cpo_trainer("orpo", beta=0.3)),
}


@pytest.mark.parametrize("name", CASES)
def test_pairs(name: str) -> None:
    objective, theirs = CASES[name]
    difference = apart(partial(mean_over_pairs, objective), theirs)
    print(f"largest difference of loss and gradient: {difference:.1e}")  # noqa: T201  shown by pytest -rP
    # trl keeps exo_pair's label_smoothing in float32.
    assert difference < (1e-6 if name == "exo" else TOLERANCE)


def test_the_alpha_divergence() -> None:
    """In float32, since trl knows no float64 there; it lies between the two divergences that are compared above."""
    policy, reference = (replace(each, logp=each.logp.float()) for each in (rows(0), rows(1)))
    theirs = trl_pairs(
        policy, reference, "sigmoid", beta=0.2, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.7
    )
    assert float(mean_over_pairs(FDpo("alpha", 0.2, alpha=0.3), policy, reference)) == pytest.approx(float(theirs), rel=1e-6)
    ends = [mean_over_pairs(FDpo("alpha", 0.2, alpha=alpha), rows(0), rows(1)) for alpha in (1e-9, 1 - 1e-9)]
    known = [mean_over_pairs(FDpo(kind, 0.2), rows(0), rows(1)) for kind in ("reverse_kl", "forward_kl")]
    torch.testing.assert_close(torch.stack(ends), torch.stack(known), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shift", [-0.4, 0.4])
@pytest.mark.parametrize("reference_point", ["step", "zero"])
def test_kto(reference_point: str, shift: float) -> None:
    """The mean over a batch is the step's here, and is cut off below zero."""
    weights = {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    objective = Kto(reference_point=reference_point, **weights)  # type: ignore[arg-type]
    others = (replace(rows(2), logp=rows(3).logp + shift), rows(3))
    ratings, order = torch.tensor(LABELS).double(), list(range(len(LABELS)))

    def mine(policy: Rows, reference: Rows) -> Tensor:
        survey, given = survey_of(objective), objective.__call__
        if survey is not None:
            with torch.no_grad():
                given = survey.given(survey.measure(ours(others[0], order), ours(others[1], order)) / len(order))
        return given(ours(policy, order, ratings), ours(reference, order)).loss / len(order)

    theirs = partial(trl_kto, labels=LABELS, others=others if reference_point == "step" else None, **weights)
    difference = apart(mine, theirs)
    print(f"largest difference of loss and gradient: {difference:.1e}")  # noqa: T201  shown by pytest -rP
    assert difference < TOLERANCE


def test_kto_of_pairs_is_kto_of_their_completions() -> None:
    objective, z0 = KtoPair(beta=0.2, desirable_weight=1.3), torch.tensor(0.6, dtype=torch.float64)
    order = [row for pair in range(PAIRS) for row in (pair, PAIRS + pair)]
    ratings = torch.tensor([1.0] * PAIRS + [0.0] * PAIRS)

    def by_pairs(policy: Rows, reference: Rows) -> Tensor:
        return objective.given(z0)(ours(policy, order), ours(reference, order)).loss / PAIRS

    def by_completions(policy: Rows, reference: Rows) -> Tensor:
        alone = Kto(beta=0.2, desirable_weight=1.3).given(z0)
        return alone(ours(policy, order, ratings), ours(reference, order)).loss / len(order)

    assert apart(by_pairs, by_completions) < TOLERANCE

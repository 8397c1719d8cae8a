"""Objectives that no trainer of trl's computes, against what their papers define; and sums."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from objectives import RPO
from random_data import random_scores, random_trees
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from zkit_preference.bco import Bco
from zkit_preference.dpo import Dpo
from zkit_preference.f_dpo import FDpo
from zkit_preference.kto import Kto
from zkit_preference.listwise_dpo import ListwiseDpo
from zkit_preference.weighted_sum import Part, Sum
from zkit_preference.wpo import Wpo
from zkit_sft.dft import Dft
from zkit_sft.objective import Sft

from zephyr_kit import Unit
from zephyr_kit.protocols import Objective, Scores


def scores(completions: int, *, examples: int = 3) -> tuple[Scores, Scores]:
    trees = random_trees(examples, completions)
    return random_scores(trees, seed=0, scale=2.0, needs_gradient=True), random_scores(trees, seed=1, scale=2.0)


def agree(objective: Objective, expected: Tensor, policy: Scores, reference: Scores | None) -> None:
    """In the loss, and in its gradient."""
    mine = objective(policy, reference).loss
    gradients = [torch.autograd.grad(loss, policy.logp_M, retain_graph=True)[0] for loss in (mine, expected)]
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert gradients[0].any()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_ranking_is_the_likeliest_of_all(count: int) -> None:
    """Of Plackett and Luce: draw the best by exp r, then the best of the rest; all orders together are certain."""
    policy, reference = scores(count)
    objective, reward = ListwiseDpo(completions=count, beta=0.4), 0.4 * (policy.sums() - reference.sums()).view(-1, count)

    def probability(order: tuple[int, ...], example: int) -> Tensor:
        worth = reward[example, list(order)].exp()
        return torch.stack([worth[k] / worth[k:].sum() for k in range(count)]).prod()

    expected = [-probability(tuple(range(count)), example).log() for example in range(3)]
    agree(objective, torch.stack(expected).sum(), policy, reference)
    everything = [float(probability(order, 0).detach()) for order in itertools.permutations(range(count))]
    assert sum(everything) == pytest.approx(1.0)


def test_a_ranking_of_two_is_a_pair() -> None:
    policy, reference = scores(2)
    listwise, pairs = ListwiseDpo(completions=2)(policy, reference), Dpo()(policy, reference)
    agree(ListwiseDpo(completions=2), pairs.loss, policy, reference)
    assert listwise.metrics.keys() == pairs.metrics.keys()
    for name, value in listwise.metrics.items():
        torch.testing.assert_close(value, pairs.metrics[name])


def test_how_much_of_a_ranking_is_in_order() -> None:
    policy = Scores(torch.tensor([-1.0, -3.0, -2.0, -4.0]), torch.arange(4), 4)
    metrics = ListwiseDpo(beta=1.0)(policy, Scores(torch.zeros(4), torch.arange(4), 4)).metrics
    assert float(metrics["reward/accuracy"]) == pytest.approx(5 / 6)
    assert float(metrics["reward/chosen"]) == -1
    assert float(metrics["reward/rejected"]) == -3


DIVERGENCES = {
    "reverse_kl": lambda u, _: u * u.log(),
    "forward_kl": lambda u, _: -u.log(),
    "js": lambda u, _: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "alpha": lambda u, a: (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1)),
}
"""The functions f of arXiv 2309.16240."""


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_enters_by_the_slope_of_its_function(name: str) -> None:
    policy, reference = scores(2)
    u = (policy.sums() - reference.sums()).exp()
    # Of the first and second order, so that the gradient can be compared too.
    (slope,) = torch.autograd.grad(DIVERGENCES[name](u, 0.3).sum(), u, create_graph=True)
    expected = -torch.nn.functional.logsigmoid(0.2 * (slope[0::2] - slope[1::2])).sum()
    agree(FDpo(name, 0.2, 0.3), expected, policy, reference)  # type: ignore[arg-type]


def test_a_pair_weighs_as_much_as_the_policy_would_say_it() -> None:
    """By the geometric mean of the tokens' probabilities."""
    policy, reference = scores(2)
    pieces = policy.logp_M.detach().split(policy.lengths().int().tolist())
    weights = [math.prod(piece.exp().tolist()) ** (1 / len(piece)) for piece in pieces]
    h = policy.sums() - reference.sums()
    losses = -torch.nn.functional.logsigmoid(0.1 * (h[0::2] - h[1::2]))
    agree(Wpo(), sum(losses[i] * weights[2 * i] * weights[2 * i + 1] for i in range(3)), policy, reference)  # type: ignore[arg-type]


def test_bco_is_a_classifier_around_the_mean_reward() -> None:
    policy, reference = scores(2)
    reward = 0.1 * (policy.sums() - reference.sums())
    objective, mean = Bco(), reward.detach().mean()
    torch.testing.assert_close(objective.measure(policy, reference) / 3, reward.mean())
    expected = -(reward[0::2] - mean).sigmoid().log().sum() - (1 - (reward[1::2] - mean).sigmoid()).log().sum()
    agree(objective.given(mean), expected, policy, reference)  # type: ignore[arg-type]


def test_dft_is_the_mean_probability_in_its_gradient() -> None:
    """-p log p with p held fast has the gradient of -p: what the paper makes of fine-tuning."""
    logits = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.arange(7) % 5
    logp_M = logits.log_softmax(-1)[torch.arange(7), target]
    loss = Dft()(Scores(logp_M, torch.zeros(7, dtype=torch.long), 1), None).loss
    (mine,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-logits.softmax(-1)[torch.arange(7), target].sum(), logits)
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, -(logp_M.exp() * logp_M).sum())


def test_a_sum_of_pairs_and_demonstrations() -> None:
    """DPO, and the chosen completion's likelihood by token (arXiv 2404.19733)."""
    policy, reference = scores(2)
    dpo = Dpo()(policy, reference)
    agree(RPO, dpo.loss - 0.2 * policy.means()[0::2].sum(), policy, reference)
    metrics = RPO(policy, reference).metrics
    assert metrics.keys() == dpo.metrics.keys() | {"loss/1", "loss/2"}
    torch.testing.assert_close(metrics["loss/1"], dpo.loss.detach())
    assert (RPO.completions, RPO.unit, RPO.needs_reference, RPO.needs_ratings) == (2, Unit.EXAMPLE, True, False)


def test_a_part_gets_the_first_completions() -> None:
    policy, reference = scores(4)
    every_fourth = [n for n in range(12) if n % 4 < 2]
    pairs = Dpo()(policy.only(every_fourth), reference.only(every_fourth)).loss
    both = Sum((Part(ListwiseDpo(), 2.0), Part(Dpo(), 0.5)))
    agree(both, 2 * ListwiseDpo()(policy, reference).loss + pairs / 2, policy, reference)
    assert both.completions == 4


def test_tokens_are_counted_where_all_parts_count_them() -> None:
    policy, _ = scores(1)
    both = Sum((Part(Sft(), 0.5), Part(Dft())))
    assert both.unit is Unit.TOKEN
    agree(both, Sft()(policy, None).loss / 2 + Dft()(policy, None).loss, policy, None)
    assert Sum((Part(Sft()), Part(Dpo(reference_free=True)))).unit is Unit.EXAMPLE


class Splits(TorchDispatchMode):
    """Counts how often a tensor is split."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "split" in str(func)
        return func(*args, **(kwargs or {}))


def test_scores_are_split_into_examples_once_however_many_there_are() -> None:
    counts = []
    for num_examples in (2, 9):
        scores = random_scores(random_trees(num_examples, 2), seed=0)
        for each in (scores, replace(scores, rating_N=None)):
            for n, one in enumerate(each.examples(2)):
                other = each.only([2 * n, 2 * n + 1])
                assert torch.equal(one.logp_M, other.logp_M)
                assert torch.equal(one.sequence_M, other.sequence_M)
                assert (one.num_sequences, one.counts) == (other.num_sequences, other.counts)
                assert one.rating_N is other.rating_N is None or torch.equal(one.rating_N, other.rating_N)
        with Splits() as splits:
            Sum((Part(Dpo(reference_free=True)), Part(Sft())))(scores, None)
        counts.append(splits.count)
    assert counts[0] == counts[1]


def test_what_compares_with_the_step_is_no_part() -> None:
    with pytest.raises(ValueError, match="compares with a mean over the step cannot be a part"):
        Sum((Part(Dpo()), Part(Bco())))
    assert Sum((Part(Kto(reference_point="zero")), Part(Sft()))).needs_ratings
    with pytest.raises(ValueError, match="at least one"):
        Sum(())

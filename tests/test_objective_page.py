"""The how-to on objectives: its code, its laws and its formulas; and the reference of what they get and give."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
import torch
from random_data import random_scores, random_trees
from test_documentation import blocks, sections

import zephyr_kit
from zephyr_kit import protocols
from zephyr_kit.protocols import Outcome, Scores
from zephyr_kit.testing import ObjectiveLaws

from contract import objectives_page  # isort: skip  beside mkdocs' hooks, where test_documentation has made the way


def followed() -> ModuleType:
    """The page's code as the module that it would be."""
    page = ModuleType("objective_page")
    sys.modules[page.__name__] = page
    exec(compile("\n".join(blocks("docs/how-to/objective.md", "python")), "objective.md", "exec", dont_inherit=True), vars(page))
    return page


PAGE = followed()
SHOWN = PAGE.zkit_objectives()


class TestEvenDpo(PAGE.TestEvenDpo):
    pass


class TestRatedMargin(PAGE.TestRatedMargin):
    pass


class TestListCrossEntropy(PAGE.TestListCrossEntropy):
    pass


class TestFocalSft(PAGE.TestFocalSft):
    pass


def test_the_laws_of_all_that_is_shown_are_tried():
    tried = {type(kit.objective) for kit in ObjectiveLaws.__subclasses__() if kit.__module__ == PAGE.__name__}
    assert tried == set(SHOWN.values())
    assert {f"Test{each.__name__}" for each in tried} <= globals().keys()


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def even_dpo(it, pi, ref, size, s):
    ratio = [(a - b) / n for a, b, n in zip(pi, ref, size, strict=True)]
    return -sum(log_sigmoid(it.beta * (won - lost)) for won, lost in zip(ratio[0::2], ratio[1::2], strict=True))


def rated_margin(it, pi, ref, size, s):
    ratio = [a - b for a, b in zip(pi, ref, strict=True)]
    pairs = range(0, len(ratio), 2)
    return -sum(log_sigmoid(it.beta * (ratio[w] - ratio[w + 1]) - it.alpha * (s[w] - s[w + 1])) for w in pairs)


def list_cross_entropy(it, pi, ref, size, s):
    total, k = 0.0, it.completions
    for first in range(0, len(pi), k):
        ours = [math.exp(it.beta * pi[n] / size[n]) for n in range(first, first + k)]
        theirs = [math.exp(s[n] / it.temperature) for n in range(first, first + k)]
        total -= sum(q / sum(theirs) * math.log(p / sum(ours)) for p, q in zip(ours, theirs, strict=True))
    return total


@pytest.mark.parametrize("formula", [even_dpo, rated_margin, list_cross_entropy], ids=lambda formula: formula.__name__)
def test_a_loss_is_its_formula(formula):
    it = SHOWN[formula.__name__]()
    trees = random_trees(3, it.completions)
    policy, reference = random_scores(trees, seed=1), random_scores(trees, seed=2)
    expected = formula(it, *(each.tolist() for each in (policy.sums(), reference.sums(), policy.lengths(), policy.rating_N)))
    tolerance = 1e-12 if formula is even_dpo else 1e-6  # ratings are in float32
    assert it(policy, reference).loss.item() == pytest.approx(expected, rel=tolerance)


def test_the_loss_of_tokens_is_its_formula_and_the_metric_counts_them():
    policy = random_scores(random_trees(5, 1), seed=1)
    outcome: Outcome = SHOWN["focal_sft"](gamma=1.5)(policy, None)
    assert outcome.loss.item() == pytest.approx(sum(-((1 - math.exp(x)) ** 1.5) * x for x in policy.logp_M.tolist()))
    assert outcome.metrics["share/surprising"].item() == sum(math.exp(x) < 0.1 for x in policy.logp_M.tolist()) > 0


@pytest.mark.parametrize("name", SHOWN)
def test_an_empty_batch_is_nothing(name):
    nothing = Scores(torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.long), 0, torch.zeros(0), ())
    full = random_scores(random_trees(1, SHOWN[name]().completions), seed=1)
    outcome, other = SHOWN[name]()(nothing, nothing), SHOWN[name]()(full, full)
    assert (outcome.loss.item(), list(outcome.metrics)) == (0, list(other.metrics))


# The reference


def names_of_the_protocol() -> list[str]:
    named = {name: getattr(getattr(protocols, name), "__module__", "") for name in protocols.__all__}
    return [*(name for name, module in named.items() if module == "zephyr_kit.protocols.objective"), "Unit"]


@pytest.mark.parametrize("name", names_of_the_protocol())
def test_every_public_name_has_its_entry_with_all_that_it_has(name):
    own = {head.partition("(")[0]: text for head, text in sections(objectives_page(), "##").items()}
    named = getattr(protocols, name, None) or getattr(zephyr_kit, name)
    assert len(own[name].split()) > 3
    if isinstance(named, type):
        slots, public = getattr(named, "__slots__", ()), (each for each in vars(named) if not each.startswith("_") or each == "__call__")
        for member in {*slots, *public}:
            lines = [line for line in own[name].splitlines() if line.startswith(f"- **`{member}") and not line.rstrip().endswith("**")]
            assert lines, member

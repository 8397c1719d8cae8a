"""Faults that a hasty author makes, each planted once: the laws find them, on the smallest case."""

from __future__ import annotations

import re

import pytest
from planted import (
    ByRating,
    Careless,
    Cutting,
    Odds,
    Seeding,
    Shouting,
    Stepping,
    Unasked,
    Unlucky,
    Wide,
    Writing,
    broken,
    found,
)
from zkit_filters.length import Length

from zephyr_kit.example import Example, Message
from zephyr_kit.testing import AttentionLaws, FilterLaws, ObjectiveLaws, OptimizerLaws, for_all, scored


def test_what_fails_only_at_the_end_of_what_can_be_is_found():
    findings = found(ObjectiveLaws, Odds())
    assert broken(findings) == {"survives_extreme_scores"}
    assert "[[0.0]" in findings["survives_extreme_scores"].remark


def test_a_filter_is_tried_on_more_than_its_authors_rows():
    rows = [Example((Message("user", "Hm?"),), ((Message("assistant", reply),),), origin=reply) for reply in ("Yes.", "no.")]
    findings = found(FilterLaws, Shouting(), rows=rows)
    assert broken(findings) == {"gives_a_reason_if_and_only_if_it_does_something"}
    told = findings["gives_a_reason_if_and_only_if_it_does_something"].remark
    assert re.search(r"the smallest that was found to break it: \[Example\(prompt=\(Message\(role='user', content=''\),\)", told)


@pytest.mark.parametrize(
    ("kit", "subject", "laws"),
    [
        (ObjectiveLaws, Wide(), {"a_step_is_the_same_however_it_is_cut"}),
        (ObjectiveLaws, Unasked(), {"is_a_scalar_sum"}),
        (ObjectiveLaws, Seeding(), {"is_the_same_each_time"}),
        (ObjectiveLaws, Writing(), {"is_the_same_each_time"}),
        (AttentionLaws, Careless("scale"), {"equals_its_definition_on_repeated_prompts", "equals_its_definition_on_shared_prompts"}),
        (AttentionLaws, Careless("window"), {"equals_its_definition_on_repeated_prompts", "equals_its_definition_on_shared_prompts"}),
        (AttentionLaws, Careless("no maximum"), {"survives_large_scores"}),
        (OptimizerLaws, Stepping("first only"), {"minimises"}),
        (OptimizerLaws, Stepping("", updates_bfloat16=True), {"loses_no_small_step"}),
        (FilterLaws, Cutting(), {"leaves_origin_scores_and_roles", "gives_a_reason_if_and_only_if_it_does_something"}),
        (FilterLaws, Unlucky(), {"works_in_another_process"}),
    ],
    ids=lambda given: getattr(given, "fault", None) or type(given).__name__,
)
def test_a_planted_fault_is_found(kit, subject, laws):
    rows = [Example((Message("user", "Hm?"),), ((Message("assistant", reply),),), origin=reply) for reply in map(str, range(30))]
    lost = broken(found(kit, subject, **({"rows": rows} if kit is FilterLaws else {})))
    assert laws <= lost


def test_a_kernel_without_a_fault_keeps_the_laws():
    assert not broken(found(AttentionLaws, Careless("")))


def test_a_filter_may_keep_a_single_row():
    long, short = (Example((Message("user", "Hm?"),), ((Message("assistant", "so " * n),),), origin="x") for n in (9, 1))
    assert not broken(found(FilterLaws, Length(max_words=3), rows=[long, short]))


def test_ratings_never_rise_from_the_chosen_to_the_rejected():
    seen: list[tuple[float, ...]] = []
    for_all(scored(3, -1.0), lambda drawn: seen.extend(zip(*[iter(drawn.ratings)] * 3, strict=True)), cases=40)
    assert all(a >= b >= c >= 0 for a, b, c in seen)
    assert any(a == b for a, b, _ in seen)
    assert {c for _, _, c in seen} == {0.0, 1.0, 5.0}
    assert not broken(found(ObjectiveLaws, ByRating()))

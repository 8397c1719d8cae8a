"""`lay_out` and `visible`: the definition that every kernel, and every loss, is measured against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyr_kit.batch import Batch, Tree, lay_out, visible

ids = st.lists(st.integers(0, 31_999), max_size=6).map(lambda tokens: np.array(tokens, np.int32))


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    completions = tuple(draw(st.lists(ids, min_size=1, max_size=4)))
    trained = tuple(np.array(draw(st.lists(st.booleans(), min_size=len(c), max_size=len(c))), np.bool_) for c in completions)
    return Tree(draw(ids), completions, trained)


rows = st.lists(trees(), max_size=5)
quick = settings(max_examples=40, deadline=None)
either = pytest.mark.parametrize("share", [True, False])


def expected_targets(row: Sequence[Tree]) -> list[list[tuple[list[int], int]]]:
    """For each completion, every trained token with all tokens before it, as one would write them by hand."""
    listed = []
    for tree in row:
        for completion, trained in zip(tree.completions, tree.trained, strict=True):
            whole = [*tree.prompt.tolist(), *completion.tolist()]
            places = [len(tree.prompt) + number for number in np.flatnonzero(trained)]
            listed.append([(whole[:place], whole[place]) for place in places if place])
    return listed


def seen_targets(batch: Batch) -> list[list[tuple[list[int], int]]]:
    """The same from a batch: what each source position sees, in the order of positions."""
    mask = visible(batch)
    listed: list[list[tuple[list[int], int]]] = [[] for _ in range(batch.num_sequences)]
    for source, target, sequence in zip(batch.source_M, batch.target_M, batch.sequence_M, strict=True):
        seen = mask[source].nonzero()[:, 0]
        assert batch.positions_T[seen].tolist() == list(range(len(seen)))
        listed[sequence].append((batch.tokens_T[seen].tolist(), int(target)))
    return listed


@either
@quick
@given(rows)
def test_each_target_follows_exactly_its_own_prefix(share: bool, row: list[Tree]) -> None:
    assert seen_targets(lay_out(row, share_prompts=share)) == expected_targets(row)


@quick
@given(rows)
def test_shared_and_repeated_prompts_list_the_same_targets(row: list[Tree]) -> None:
    shared, repeated = lay_out(row), lay_out(row, share_prompts=False)
    assert torch.equal(shared.target_M, repeated.target_M)
    assert torch.equal(shared.sequence_M, repeated.sequence_M)
    assert shared.num_sequences == repeated.num_sequences == sum(len(tree.completions) for tree in row)


@either
@quick
@given(rows)
def test_sizes(share: bool, row: list[Tree]) -> None:
    batch = lay_out(row, share_prompts=share)
    repeats = 0 if share else sum(len(tree.prompt) * (len(tree.completions) - 1) for tree in row)
    size = sum(tree.num_tokens for tree in row) + repeats
    assert len(batch.tokens_T) == len(batch.positions_T) == len(batch.segment_T) == sum(batch.lengths) == size
    assert len(batch.source_M) == len(batch.target_M) == len(batch.sequence_M)
    assert batch.segment_T.tolist() == [number for number, length in enumerate(batch.lengths) for _ in range(length)]
    assert batch.parent_S.tolist() == list(batch.parents)
    assert len(batch.parents) == len(batch.lengths)
    assert all(tensor.dtype == torch.long for tensor in (batch.tokens_T, batch.source_M, batch.target_M, batch.sequence_M, batch.parent_S))


@either
@quick
@given(rows)
def test_sources_precede_targets_and_come_in_order(share: bool, row: list[Tree]) -> None:
    batch = lay_out(row, share_prompts=share)
    assert (batch.sequence_M.diff() >= 0).all()
    for sequence in range(batch.num_sequences):
        positions = batch.positions_T[batch.source_M[batch.sequence_M == sequence]]
        assert (positions.diff() > 0).all()
    assert ((batch.source_M >= 0) & (batch.source_M < len(batch.tokens_T))).all()


@quick
@given(rows)
def test_parents_are_prompts_and_have_none(row: list[Tree]) -> None:
    batch = lay_out(row)
    for number, parent in enumerate(batch.parents):
        assert -1 <= parent < number
        if parent >= 0:
            assert batch.parents[parent] == -1
            starts = batch.positions_T[batch.segment_T == number]
            assert not len(starts) or starts[0] == batch.lengths[parent]
    assert set(lay_out(row, share_prompts=False).parents) <= {-1}


@either
@quick
@given(rows, st.integers(1, 8))
def test_a_window_counts_positions(share: bool, row: list[Tree], window: int) -> None:
    batch = lay_out(row, share_prompts=share)
    whole, seen = visible(batch), visible(batch, window=window)
    distance = batch.positions_T[:, None] - batch.positions_T[None, :]
    assert torch.equal(seen, whole & (distance < window))
    assert seen.diagonal().all()
    assert not (whole & (distance < 0)).any()
    assert torch.equal(visible(batch, window=1), torch.eye(len(batch.tokens_T), dtype=torch.bool))


@quick
@given(rows)
def test_nothing_leaks_between_examples(row: list[Tree]) -> None:
    batch = lay_out(row)
    forked = [tree for tree in row if len(tree.prompt) and len(tree.completions) > 1]
    others = [tree for tree in row if not len(tree.prompt) or len(tree.completions) < 2]
    alone = [Tree(each.prompt, (ids,), (flags,)) for each in others for ids, flags in zip(each.completions, each.trained, strict=True)]
    family_S = torch.tensor([parent if parent >= 0 else number for number, parent in enumerate(batch.parents)], dtype=torch.long)
    mask, family_T = visible(batch), family_S[batch.segment_T]
    assert not mask[family_T[:, None] != family_T[None, :]].any()
    for family, one in zip(family_S.unique(), [*forked, *alone], strict=True):
        own = family_T == family
        assert torch.equal(batch.tokens_T[own], lay_out([one]).tokens_T)
        assert torch.equal(mask[own][:, own], visible(lay_out([one])))


@quick
@given(rows)
def test_what_is_shared_lies_in_one_piece_and_what_shares_it_in_another(row: list[Tree]) -> None:
    parents = lay_out(row).parents
    shared = sorted({parent for parent in parents if parent >= 0})
    assert shared == list(range(len(shared)))
    children = [parent for parent in parents if parent >= 0]
    assert list(parents) == [*([-1] * len(shared)), *sorted(children), *([-1] * (len(parents) - len(shared) - len(children)))]


def tree(prompt: list[int], *completions: list[int], untrained: int = 0) -> Tree:
    flags = tuple(np.arange(len(completion)) >= untrained for completion in completions)
    return Tree(np.array(prompt, np.int32), tuple(np.array(completion, np.int32) for completion in completions), flags)


def test_by_hand() -> None:
    batch = lay_out([tree([1, 2, 3], [4, 5], [6]), tree([7], [8, 9])])
    assert batch.tokens_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2]
    assert batch.segment_T.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3]
    assert batch.parents == (-1, 0, 0, -1)
    assert batch.lengths == (3, 2, 1, 3)
    assert batch.source_M.tolist() == [2, 3, 2, 6, 7]
    assert batch.target_M.tolist() == [4, 5, 6, 8, 9]
    assert batch.sequence_M.tolist() == [0, 0, 1, 2, 2]


def test_without_a_prompt_the_first_token_has_no_source() -> None:
    batch = lay_out([tree([], [4, 5, 6])])
    assert (batch.source_M.tolist(), batch.target_M.tolist()) == ([0, 1], [5, 6])
    pair = lay_out([tree([], [4, 5], [6])])
    assert pair.parents == (-1, -1)
    assert (pair.target_M.tolist(), pair.num_sequences) == ([5], 2)


def test_untrained_tokens_are_no_targets() -> None:
    batch = lay_out([tree([1], [2, 3, 4], untrained=2)])
    assert (batch.source_M.tolist(), batch.target_M.tolist()) == ([2], [4])


def test_nothing_at_all() -> None:
    batch = lay_out([])
    assert len(batch.tokens_T) == len(batch.target_M) == batch.num_sequences == 0
    assert visible(batch).shape == (0, 0)


def test_moving_keeps_all() -> None:
    batch = lay_out([tree([1, 2], [3], [4])])
    moved = batch.to(torch.device("meta"))
    assert moved.tokens_T.device.type == moved.sequence_M.device.type == "meta"
    assert (moved.lengths, moved.parents, moved.num_sequences) == (batch.lengths, batch.parents, batch.num_sequences)

"""What the benchmarks count is right, and what they train on is the same every time."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cases import Work, real_tokens
from benchmarks.multiplications import Recorder, cost
from benchmarks.table import fastest, write_table
from benchmarks.trace import Trace
from benchmarks.workloads import drawn_pairs, multi_turn_pairs
from zephyr_kit.batch import Tree

NUM_TOKENS = [50, 30, 60, 80]


def trace(*seconds: float) -> Trace:
    return Trace([1.0] * 4, [1.0] * 4, seconds, [2 * each for each in seconds], first_step=9.0, start=1, peak=2)


def test_a_shared_prompt_counts_for_each_completion() -> None:
    ids, flags = np.arange(9, dtype=np.int32), np.ones(9, np.bool_)
    assert real_tokens(Tree(ids[:3], (ids[:2], ids[:4]), (flags[:2], flags[:4]))) == 2 * 3 + 2 + 4
    assert real_tokens(Tree(ids[:3], (ids[:2],), (flags[:2],))) == 3 + 2


def test_the_first_step_is_not_timed_and_the_median_of_the_others_counts() -> None:
    assert trace(1.0, 1.0, 1.0).rate(NUM_TOKENS) == 60
    assert trace(1.0, 6.0, 1.0).rate(NUM_TOKENS) == 30
    assert trace(1.0, 1.0, 1.0).processor_rate(NUM_TOKENS) == 30


def test_work_is_a_plan_of_the_examples_of_its_rows() -> None:
    work = Work(Path("nowhere"), (((3, 1), (2,)), ((0,), (4, 5))))
    assert [work.step(number) for number in range(work.num_steps)] == [[3, 1, 2], [0, 4, 5]]


def test_every_multiplication_is_counted_forward_and_backward() -> None:
    layer = torch.nn.Linear(8, 16, bias=False)
    inputs = torch.randn(1, 5, 8, requires_grad=True)
    with Recorder() as recorder:
        layer(inputs).sum().backward()
    assert recorder.products.total() == 3
    assert cost(recorder.products) == 3 * 2 * 5 * 8 * 16
    factors = [factor for product in recorder.products for factor in product]
    assert [tuple(factor.draw().stride()) for factor in factors] == [factor.stride for factor in factors]


@pytest.mark.parametrize("rows", [drawn_pairs, multi_turn_pairs])
def test_made_pairs_are_the_same_every_time_and_share_their_prompt(shared: Path, rows) -> None:
    first, again = (list(itertools.islice(rows(), 5)) for _ in range(2))
    assert first == again
    for row in first:
        assert row["chosen"][:-1] == row["rejected"][:-1]
        assert row["chosen"][-1] != row["rejected"][-1]
        assert row["chosen"][-1]["role"] == row["rejected"][-1]["role"] == "assistant"


def test_the_table_shows_every_setting_and_marks_the_fastest(tmp_path: Path) -> None:
    own = {"tokens a second": 40.0, "peak GiB": 1.0, "GiB at the start": 0.5, "seconds to the first step": 1.0}
    ratios = {"times as fast by processor time": 4.0, "share of its memory": 0.25, "largest difference of a loss": 1e-6}
    sides = {
        "zephyr-kit": own,
        "trl, packing": {**own, **ratios, "tokens a second": 10.0, "times as fast": 4.0},
        "trl, padding": {**own, **ratios, "tokens a second": 5.0, "times as fast": 8.0},
    }
    cell = {"model": "5m", "method": "full", "workload": "chat", "allocator": "kept", "sides": sides}
    text = write_table([cell], tmp_path / "table.md")
    assert text.count("\n") == 4
    assert "**packing**" in text
    assert "| padding |" in text
    assert fastest(cell)["times as fast"] == 4.0

"""Steps that are taken in one way or another, and what is recorded of them."""

from __future__ import annotations

import torch
from random_data import random_trees
from zkit_sft.objective import Sft

from zephyr_kit.testing.stand_ins import TablePolicy
from zephyr_kit.trees import Trees
from zephyr_kit.ways import Way, take


def test_each_step_is_recorded_once_whatever_optimizers_were_made_before() -> None:
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # from here on, torch calls hooks in the `step` of that class
    examples, steps = Trees(random_trees(4, 1, vocabulary=16)), [[0, 1], [2, 3]]
    record = take(TablePolicy(), Sft(), examples, steps, Way(), device=torch.device("cpu"), max_length=20)
    assert len(record.gradients) == len(record.losses) == len(steps)

"""trl's losses, asked of its trainers' own methods with stand-ins for model and trainer, on log-probabilities that we chose.

A method reads what the stand-in for `self` holds; that of trl 1.16 needs no more than is here. Rows are padded: the
chosen completions, then the rejected ones, each after a prompt of one token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from oracles.trl_runs import quiet


@dataclass(frozen=True)
class Rows:
    """Log-probabilities of the tokens of some completions, (rows, longest), and how many each has."""

    logp: Tensor
    lengths: Sequence[int]

    @property
    def mask(self) -> Tensor:
        return torch.arange(self.logp.shape[1]) < torch.tensor(self.lengths)[:, None]

    def inputs(self, number: int = 0, prefix: str = "") -> dict[str, Tensor]:
        """A batch with `number` as its only token, by which the stand-in for the model knows it."""
        mask = torch.nn.functional.pad(self.mask, (1, 0)).long()
        ids = torch.full_like(mask, number)
        return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": torch.ones_like(ids), f"{prefix}completion_mask": mask}

    def of(self, rows: Sequence[int]) -> Rows:
        return Rows(self.logp[list(rows)], [self.lengths[row] for row in rows])


class Answering(torch.nn.Module):
    """Stands for a model: answers the batch of number n with the n-th rows."""

    is_gradient_checkpointing = False

    def __init__(self, *rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        rows = self.rows[int(input_ids[0, 0])]
        logp, nothing = rows.logp * rows.mask, torch.zeros_like(rows.logp)
        return SimpleNamespace(
            log_probs=logp, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), log_sum_sq_probs=nothing
        )


def trl_pairs(policy: Rows, reference: Rows, loss_type: str, *, beta: float, **settings: Any) -> Tensor:
    """The mean over pairs, by DPOTrainer."""
    with quiet():
        from trl import DPOTrainer
    usual = {
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "use_weighting": False,
    }
    args = SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=settings.pop("discopop_tau", 0.05))
    known = {**usual, **settings, "loss_types": [loss_type], "loss_weights": [1.0], "beta": beta, "args": args}
    loss: Tensor = DPOTrainer._compute_loss(_trainer(policy, reference, **known), Answering(policy), policy.inputs(), return_outputs=False)
    return loss


def trl_kto(policy: Rows, reference: Rows, labels: Sequence[bool], others: tuple[Rows, Rows] | None, **settings: Any) -> Tensor:
    """The mean over completions, by KTOTrainer; `others` are the mismatched ones, without which the reference point is zero."""
    with quiet():
        from trl import KTOTrainer
    known = {"calculate_KL": others is not None, "loss_type": "kto", "args": SimpleNamespace(gradient_checkpointing_kwargs=None)}
    trainer = _trainer(policy, reference, **known, **settings)
    trainer._compute_kl_logps = partial(KTOTrainer._compute_kl_logps, trainer)
    inputs = {**policy.inputs(), "label": torch.tensor(labels)}
    if others is not None:
        trainer.ref_model = Answering(reference, others[1])
        inputs |= others[0].inputs(1, "KL_")
    model = Answering(policy, *(others or ())[:1])
    loss: Tensor = KTOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    return loss


def trl_without_reference(policy: Rows, loss_type: str, *, beta: float, alpha: float = 0.0, gamma: float = 0.0) -> Tensor:
    """The mean over pairs, by CPOTrainer or ORPOTrainer (`orpo`), each pair by itself: they average over a batch's tokens."""
    with quiet():
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.orpo import ORPOTrainer
    trainer, num_pairs = ORPOTrainer if loss_type == "orpo" else CPOTrainer, len(policy.lengths) // 2
    average = loss_type in ("orpo", "simpo")
    losses = []
    for pair in range(num_pairs):
        rows = policy.of([pair, num_pairs + pair])
        sums, lengths = (rows.logp * rows.mask).sum(1), torch.tensor(rows.lengths)
        logp = sums / lengths if average else sums
        forward = (logp[:1], logp[1:], torch.zeros(1), torch.zeros(1), -sums[0] / lengths[0])
        known = {"beta": beta, "alpha": 0.0, "label_smoothing": 0.0, "loss_type": loss_type, "cpo_alpha": alpha, "simpo_gamma": gamma}
        it = _trainer(policy, policy, **known, concatenated_forward=lambda *_, told=forward: told)
        for name in ("cpo_loss", "odds_ratio_loss"):
            if hasattr(trainer, name):
                setattr(it, name, partial(getattr(trainer, name), it))
        with mock.patch.object(Tensor, "float", Tensor.double):  # ORPO's would round to float32
            losses.append(trainer.get_batch_loss_metrics(it, None, {})[0])
    return torch.stack(losses).mean()


def _trainer(policy: Rows, reference: Rows, **settings: Any) -> Any:
    """Stands for a trainer, on one device."""

    def same(value: Any) -> Any:
        return value

    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same, unwrap_model=same)
    metrics: Any = defaultdict(lambda: defaultdict(list))
    own = {"model": Answering(policy), "ref_model": Answering(reference), "accelerator": accelerator, "_metrics": metrics}
    counts = {"_total_train_tokens": 0, "_tp_size": 1}
    return SimpleNamespace(**own, **counts, aux_loss_enabled=False, precompute_ref_logps=False, **settings)

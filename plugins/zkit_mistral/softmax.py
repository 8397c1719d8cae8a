"""What the fused head does to a chunk of logits, beside multiplying matrices."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor


class Softmax(Protocol):
    """Logits are (rows, vocabulary), `target` and what is made for each row (rows,).

    `missed` is p - onehot(target), in the type of the hidden states: by it the head's gradient is a product of matrices.
    """

    def logits_type(self, hidden: Tensor) -> torch.dtype:
        """What the logits of these hidden states are written in."""
        ...

    def normalise(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability of the targets, normaliser, and a number that `missed_of_used` wants again; may use the logits up."""
        ...

    def missed(self, logits: Tensor, target: Tensor, logp: Tensor, normaliser: Tensor) -> Tensor:
        """Of logits that are new; may be in their place."""
        ...

    def missed_of_used(self, used: Tensor, target: Tensor, logp: Tensor, normaliser: Tensor, total: Tensor) -> Tensor:
        """Of what `normalise` has left in the place of the logits."""
        ...


def softmax_for(hidden: Tensor) -> Softmax:
    """Triton's on a CUDA GPU, torch's elsewhere, and in float64."""
    if hidden.dtype != torch.float64 and not lacks_triton(hidden.device):
        from zkit_mistral.softmax_triton import TritonSoftmax

        return TritonSoftmax(hidden.dtype)
    return InPlaceSoftmax()


def lacks_triton(device: torch.device) -> str:
    """Why there is no Triton for it; empty if there is."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    return "" if find_spec("triton") is not None else "Triton is not installed"


class InPlaceSoftmax:
    """With torch's operators, in the place of the logits: on a CPU memory that is new costs more than the arithmetic on it."""

    def logits_type(self, hidden: Tensor) -> torch.dtype:
        return hidden.dtype

    def normalise(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Leaves exp(logits - highest), and gives its sum."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        highest = logits.amax(-1, keepdim=True)
        picked = logits.gather(-1, target[:, None]).squeeze(-1).to(wide)
        total = logits.sub_(highest).exp_().sum(-1, dtype=wide)
        normaliser = highest.squeeze(-1).to(wide) + total.log()
        return picked - normaliser, normaliser, total

    def missed(self, logits: Tensor, target: Tensor, logp: Tensor, normaliser: Tensor) -> Tensor:
        return _less_one(logits.sub_(normaliser[:, None]).exp_(), target, logp)

    def missed_of_used(self, used: Tensor, target: Tensor, logp: Tensor, normaliser: Tensor, total: Tensor) -> Tensor:
        return _less_one(used.div_(total[:, None]), target, logp)


def _less_one(p: Tensor, target: Tensor, logp: Tensor) -> Tensor:
    """Put p - 1 in the place of each target's p: from its logarithm, for next to 1 a short type cannot tell p from it."""
    return p.scatter_(-1, target[:, None], logp.expm1()[:, None].to(p.dtype))

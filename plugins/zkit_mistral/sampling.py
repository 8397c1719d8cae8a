"""Which token comes next: for each row by its own temperature, nucleus and random numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zephyr_kit.protocols import Sampling


def draw_numbers(sampling: Sampling, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A number in [0, 1) for each place of a reply, a function of the seed and the place alone."""
    return np.random.Generator(np.random.Philox(key=sampling.seed % 2**64)).random(count)


def choose_tokens(logits_RV: Tensor, drawn_R: Tensor, *, temperature_R: Tensor, top_p_R: Tensor, top_k_R: Tensor | None = None) -> Tensor:
    """A token for each row, (R,): the one at the place `drawn_R` of the distribution, or the likeliest at temperature 0.

    Tokens are laid end to end in the order of the vocabulary, not of their probability: two that are
    about equally likely would change places with the rounding of a batch, and the reply with them.
    """
    likeliest_R = logits_RV.argmax(-1)
    if not bool(temperature_R.any()):
        return likeliest_R
    heat_R1 = torch.where(temperature_R > 0, temperature_R, 1.0)[:, None]
    p_RV = ((logits_RV - logits_RV.amax(-1, keepdim=True)) / heat_R1).softmax(-1)
    if top_k_R is not None and bool(top_k_R.any()):
        p_RV = likeliest(p_RV, top_k_R)
    narrow = (top_p_R < 1).nonzero()[:, 0]
    if len(narrow):
        p_RV[narrow] = nucleus(p_RV[narrow], top_p_R[narrow])
    ends_RV = p_RV.cumsum(-1, dtype=torch.float64)
    places_R1 = drawn_R[:, None] * ends_RV[:, -1:]
    sampled_R = torch.searchsorted(ends_RV, places_R1, right=True)[:, 0]
    return torch.where(temperature_R > 0, sampled_R, likeliest_R)


def likeliest(p_RV: Tensor, top_k_R: Tensor) -> Tensor:
    """The `top_k_R` likeliest tokens of each row, adding up to one, and 0 for all others; the whole row where it is 0."""
    size = p_RV.shape[1]
    place_R1 = torch.where(top_k_R > 0, top_k_R, size).clamp(max=size)[:, None] - 1
    least_R1 = p_RV.sort(-1, descending=True).values.gather(1, place_R1)
    kept_RV = p_RV.masked_fill(p_RV < least_R1, 0)
    return kept_RV / kept_RV.sum(-1, keepdim=True)


def nucleus(p_RV: Tensor, top_p_R: Tensor) -> Tensor:
    """The likeliest tokens that hold `top_p_R` of the probability together, and 0 for all others (arXiv 1904.09751)."""
    sorted_RV = p_RV.sort(-1, descending=True).values
    before_RV = sorted_RV.cumsum(-1) - sorted_RV
    least_R1 = sorted_RV.masked_fill(before_RV >= top_p_R[:, None], torch.inf).amin(-1, keepdim=True)
    return p_RV.masked_fill(p_RV < least_R1, 0)

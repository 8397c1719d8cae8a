"""Replies under way, side by side, with the keys and values of what has been read.

All rows end in the same column of the cache, and begin where they may: a row that joins is put
against the right edge, and what stands to its left is not seen. R rows, K columns, L new tokens
at most, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from zephyr_kit.protocols import Sampling
from zkit_mistral.cache import empty_cache, join, select
from zkit_mistral.sampling import choose_tokens, draw_numbers


@dataclass(frozen=True, slots=True)
class Draft:
    """A reply that is wanted."""

    number: int
    """Of its request."""
    prompt: tuple[int, ...]
    limit: int
    """How many tokens it may have."""
    sampling: Sampling

    @property
    def longest(self) -> int:
        """How many columns it may come to need."""
        return len(self.prompt) + self.limit


@dataclass(frozen=True)
class Rows:
    """Replies under way. The cache is changed in place by `advance`, all else by making new rows."""

    drafts: tuple[Draft, ...]
    cache: Any
    seen_RK: Tensor
    """1 where the cache holds a token of the row."""
    logits_RV: Tensor
    """What comes next."""
    written_RL: Tensor
    count_R: Tensor
    """How many tokens are written."""
    ended_R: Tensor
    drawn_RL: Tensor
    temperature_R: Tensor
    top_p_R: Tensor
    top_k_R: Tensor
    limit_R: Tensor
    prompt_R: Tensor
    """How many tokens the prompt has."""

    def __len__(self) -> int:
        return len(self.drafts)

    def write(self, stop_ids: Tensor) -> Rows:
        """A token for each row that has not ended."""
        place_R1 = self.count_R[:, None]  # of an ended row the one after its last, which nobody reads
        drawn_R = self.drawn_RL.gather(1, place_R1)[:, 0]
        token_R = choose_tokens(self.logits_RV, drawn_R, temperature_R=self.temperature_R, top_p_R=self.top_p_R, top_k_R=self.top_k_R)
        written_RL = self.written_RL.scatter(1, place_R1, token_R[:, None])
        count_R = self.count_R + ~self.ended_R
        ended_R = self.ended_R | torch.isin(token_R, stop_ids) | (count_R == self.limit_R)
        return replace(self, written_RL=written_RL, count_R=count_R, ended_R=ended_R)

    def advance(self, model: Any) -> Rows:
        """Read the last token of each row."""
        last_R1 = self.count_R[:, None] - 1
        seen_RK = pad(self.seen_RK, (0, 1), value=1)
        ids_R1, positions_R1 = self.written_RL.gather(1, last_R1), self.prompt_R[:, None] + last_R1
        return replace(self, seen_RK=seen_RK, logits_RV=read(model, ids_R1, seen_RK, positions_R1, self.cache))

    def only(self, chosen: Sequence[int]) -> Rows:
        """Some of the rows, without the columns that only the others needed."""
        index = torch.tensor(chosen, device=self.seen_RK.device)
        kept = {name: value[index] for name, value in self._tensors().items()}
        first = int(kept["seen_RK"].any(0).int().argmax())
        select(self.cache, index, first=first)
        kept["seen_RK"] = kept["seen_RK"][:, first:]
        return replace(self, drafts=tuple(self.drafts[row] for row in chosen), **kept)

    def joined_by(self, others: Rows) -> Rows:
        """These rows and the others; as many columns as the longest has tokens."""
        mine, theirs = self._tensors(), others._tensors()
        columns = max(rows.seen_RK.shape[1] for rows in (self, others))
        for tensors in (mine, theirs):
            tensors["seen_RK"] = pad(tensors["seen_RK"], (columns - tensors["seen_RK"].shape[1], 0))
        join(self.cache, others.cache)
        both = {name: torch.cat([value, theirs[name]]) for name, value in mine.items()}
        return replace(self, drafts=self.drafts + others.drafts, **both)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def begin(model: Any, drafts: Sequence[Draft], *, most: int, device: torch.device) -> Rows:
    """Read the prompts, each once however many replies to it are wanted; `most` is the highest limit of all that may join."""
    prompts = list(dict.fromkeys(draft.prompt for draft in drafts))
    cache, columns = empty_cache(), max(map(len, prompts))
    seen_RK = torch.tensor([[0] * (columns - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    ids_RK = torch.tensor([[0] * (columns - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    logits_RV = read(model, ids_RK, seen_RK, (seen_RK.cumsum(1) - 1).clamp(min=0), cache)
    if len(prompts) < len(drafts):
        places = {prompt: place for place, prompt in enumerate(prompts)}
        index = torch.tensor([places[draft.prompt] for draft in drafts], device=device)
        select(cache, index)
        seen_RK, logits_RV = seen_RK[index], logits_RV[index]
    return Rows(
        drafts=tuple(drafts),
        cache=cache,
        seen_RK=seen_RK,
        logits_RV=logits_RV,
        written_RL=torch.zeros((len(drafts), most + 1), dtype=torch.int64, device=device),
        count_R=torch.zeros(len(drafts), dtype=torch.int64, device=device),
        ended_R=torch.zeros(len(drafts), dtype=torch.bool, device=device),
        drawn_RL=torch.from_numpy(np.stack([draw_numbers(draft.sampling, most + 1) for draft in drafts])).to(device),
        temperature_R=torch.tensor([draft.sampling.temperature for draft in drafts], device=device),
        top_p_R=torch.tensor([draft.sampling.top_p for draft in drafts], device=device),
        top_k_R=torch.tensor([draft.sampling.top_k for draft in drafts], device=device),
        limit_R=torch.tensor([draft.limit for draft in drafts], device=device),
        prompt_R=torch.tensor([len(draft.prompt) for draft in drafts], device=device),
    )


def read(model: Any, ids_RK: Tensor, seen_RK: Tensor, positions_RK: Tensor, cache: Any) -> Tensor:
    """What comes after the last of these tokens, (R, V), in float32 or better; their keys and values go to the cache."""
    logits_RV: Tensor = model(
        input_ids=ids_RK, attention_mask=seen_RK, position_ids=positions_RK, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits[:, -1]
    return logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))

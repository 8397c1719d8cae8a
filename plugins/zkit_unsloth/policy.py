"""A model that unsloth has loaded, and that is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from zkit_mistral.policy import MistralPolicy, Scorer
from zkit_mistral.team import Part

from zephyr_kit import ZkitError
from zephyr_kit.batch import Batch
from zephyr_kit.protocols import Reply, Request

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class UnslothScorer(Scorer):
    """The fused head on the hidden states of unsloth's body, which is told how long the segments of the row are."""

    def hidden(self, causal: Any, batch: Batch, part: Part | None = None, *, read_R: Tensor | None = None) -> Tensor:
        """Of all tokens; parts of a row are refused by `share_rows`."""
        if any(parent >= 0 for parent in batch.parents):
            raise ZkitError("unsloth has no mask for rows that share prompts: lay them out with share_prompts = false")
        body = getattr(causal, causal.base_model_prefix)
        hidden_TD: Tensor = body(
            input_ids=batch.tokens_T[None],
            position_ids=batch.positions_T[None],
            # On the host: unsloth copies it once a batch, and need not wait for the device.
            packed_seq_lengths=torch.tensor([length for length in batch.lengths if length], dtype=torch.int32),
            use_cache=False,
            return_dict=True,
        ).last_hidden_state[0]
        return hidden_TD


class UnslothPolicy(MistralPolicy):
    """See `protocols.Policy`; it is trained, and what it has become is read by `mistral`."""

    def generate(self, requests: Sequence[Request], *, on_text: Callable[[str], None] | None = None) -> Iterator[tuple[int, Reply]]:
        raise ZkitError("a model that unsloth trains writes no replies; saved, it does")

    def share_rows(self, group: ProcessGroup) -> None:
        raise ZkitError(
            "[model] use = \"unsloth\": its kernels compute whole rows; leave `train.context_parallel` out, or set `use` = \"mistral\""
        )

    def shard(self, mesh: DeviceMesh) -> None:
        raise ZkitError(
            "[model] use = \"unsloth\": its kernels read weights where they lie, which are not shared out over devices; "
            'set `train.sharding` = "replicated", or `use` = "mistral"'
        )

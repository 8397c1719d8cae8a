"""Weights shared out over devices by torch's `fully_shard`: each holds its rows, and a block's are gathered while it computes.

What is trained of an adapter stays whole on every device: it is small, and the engine sums its
gradients in one message a step. Whole weights that are trained are kept in float32, and gathered
in the model's type: the optimizer's full-precision copies are then no second set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from zephyr_kit import ZkitError
from zephyr_kit.shares import share_of, whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

SHORT = (torch.bfloat16, torch.float16)


def shard(scorer: nn.Module, causal: Any, mesh: DeviceMesh) -> None:
    """Share the weights of a scorer out, block by block and then the rest; `causal` is transformers' model in it."""
    _refuse_8_bits(scorer)
    adapters = {p for name, p in scorer.named_parameters() if "lora_" in name}
    trained = not adapters and any(p.requires_grad for p in scorer.parameters())
    blocks = getattr(causal, causal.base_model_prefix).layers
    for module in (*blocks, scorer):
        _shard(module, mesh, adapters, trained=trained)


def is_shared_out(module: nn.Module) -> bool:
    """Whether its weights are."""
    return any(share_of(p) is not None for p in module.parameters())


def gathered(causal: Any) -> dict[str, Tensor]:
    """All weights, in the model's type, in the first process's memory; every rank asks, and the others get nothing."""
    weights = {}
    for name, value in causal.state_dict().items():
        full = whole(value)
        if is_first():
            weights[name] = full.to("cpu", causal.config.dtype) if full.is_floating_point() else full.cpu()
    return weights


def is_first() -> bool:
    """Whether this process writes for all."""
    return dist.get_rank() == 0


def _refuse_8_bits(scorer: nn.Module) -> None:
    # Told by name, so that bitsandbytes need not be there; 4-bit layers keep their constants on themselves.
    if any(type(p).__name__ == "Int8Params" for p in scorer.parameters()):
        raise ZkitError(
            "an 8-bit base cannot be shared out: bitsandbytes keeps its scales on the parameters, which torch's fully_shard replaces; "
            'set `train.sharding` = "replicated", or `quantize` = { bits = 4 }'
        )


def _shard(module: nn.Module, mesh: DeviceMesh, adapters: set[nn.Parameter], *, trained: bool) -> None:
    own = [p for p in module.parameters() if p not in adapters and share_of(p) is None]
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if trained and own[0].dtype in SHORT:
        policy = MixedPrecisionPolicy(param_dtype=own[0].dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for parameter in own:
            parameter.data = parameter.data.float()
    # The head's weight is gathered in the root's forward, and again in its backward pass.
    sharded: FSDPModule = fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=adapters, reshard_after_forward=True)
    # Losses are divided by the units of the whole step already: gradients add up.
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)

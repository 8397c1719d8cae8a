"""AI feedback: completers that write replies, and judges that score them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Completer, Judge


@hookimpl
def zkit_completers() -> Mapping[str, type[Completer]]:
    """Offer the run's own model, any other model, and OpenAI-compatible endpoints."""
    from zkit_feedback.completer import EndpointCompleter
    from zkit_feedback.model import ModelCompleter
    from zkit_feedback.own import OwnCompleter
    from zkit_feedback.vllm import VllmCompleter

    return {"openai": EndpointCompleter, "model": ModelCompleter, "own": OwnCompleter, "vllm": VllmCompleter}


@hookimpl
def zkit_judges() -> Mapping[str, type[Judge]]:
    """Offer OpenAI-compatible endpoints with rubrics, and reward models."""
    from zkit_feedback.judge import EndpointJudge
    from zkit_feedback.reward import RewardModel

    return {"openai": EndpointJudge, "reward_model": RewardModel}

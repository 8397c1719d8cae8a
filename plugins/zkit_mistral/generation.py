"""Replies, through transformers' own generation with its key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from zephyr_kit import ZkitError
from zephyr_kit.example import Message
from zephyr_kit.protocols import Sampling
from zkit_mistral.tokenizer import ChatTokenizer


@torch.inference_mode()
def write_replies(
    model: Any,
    tokenizer: ChatTokenizer,
    dialogues: Sequence[Sequence[Message]],
    sampling: Sampling,
    *,
    device: torch.device,
    on_text: Callable[[str], None] | None = None,
) -> list[str]:
    """The reply to each dialogue, as one batch padded on the left; the same seed gives the same replies."""
    prompts = [tokenizer.prompt_ids(dialogue) for dialogue in dialogues]
    width = max(map(len, prompts))
    room = (getattr(model.config, "max_position_embeddings", None) or width + sampling.max_new_tokens) - width
    if room < 1:
        raise ZkitError(f"the dialogue is {width:,} tokens long, and the model has {width + room:,} positions; begin a new one")
    pad = tokenizer.tokens.eos_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        written = model.generate(
            input_ids=ids,
            attention_mask=seen,
            generation_config=_config(tokenizer, replace(sampling, max_new_tokens=min(room, sampling.max_new_tokens))),
            streamer=_streamer(tokenizer, on_text),
        )
    return [text.strip() for text in tokenizer.tokens.batch_decode(written[:, width:], skip_special_tokens=True)]


def _config(tokenizer: ChatTokenizer, sampling: Sampling) -> Any:
    from transformers import GenerationConfig

    tokens = tokenizer.tokens
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=bool(drawn),
        eos_token_id=tokenizer.stop_ids,
        pad_token_id=tokens.eos_token_id,
        bos_token_id=tokens.bos_token_id,
        **drawn,
    )


def _streamer(tokenizer: ChatTokenizer, on_text: Callable[[str], None] | None) -> Any:
    if on_text is None:
        return None
    from transformers import TextStreamer

    tell = on_text

    class Streamer(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: FBT001, FBT002  transformers' signature
            tell(text)

    return Streamer(tokenizer.tokens, skip_prompt=True, skip_special_tokens=True)

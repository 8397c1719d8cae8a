"""Replies to many requests: longest prompts first, side by side, each leaving when it has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from zephyr_kit import ZkitError
from zephyr_kit.example import ExampleError
from zephyr_kit.protocols import Reply, Request
from zkit_mistral.decoding import Draft, Rows, begin
from zkit_mistral.tokenizer import ChatTokenizer

MOST_ROWS = 256
"""More side by side make little difference."""
TOKENS_READ_AT_ONCE = 8192
"""Of prompts, so that what a layer computes of them stays small."""
BYTES_ON_CPU = 2**30
"""For keys and values."""
SHARE_OF_GPU = 0.5
"""Of the memory that is free, for keys and values."""
SHARE_ENDED = 0.25
"""Rows that have ended leave when they are so many, since those that stay are copied then."""


def write_replies(
    model: Any,
    tokenizer: ChatTokenizer,
    requests: Sequence[Request],
    *,
    device: torch.device,
    on_text: Callable[[str], None] | None = None,
) -> Iterator[list[tuple[int, Reply]]]:
    """Some replies, each under the number of its request, and some more, until there are no more.

    One that has no room, whose dialogue holds a control token, or that the template cannot write, is an error when all others are written.
    """
    assert on_text is None or len(requests) == 1, "one reply can be streamed"
    drafts, refusals = _drafts(model, tokenizer, requests)
    waiting = deque(sorted(drafts, key=lambda draft: (-len(draft.prompt), draft.prompt)))
    stop_ids = torch.tensor(tokenizer.stop_ids, device=device)
    budget = _most_columns(model, device)
    most = max((draft.limit for draft in drafts), default=0)
    streamer = None if on_text is None else _streamer(tokenizer, on_text)
    rows: Rows | None = None
    while waiting or rows is not None:
        while chosen := _take(waiting, rows, budget):
            begun = begin(model, chosen, most=most, device=device)
            rows = begun if rows is None else rows.joined_by(begun)
        assert rows is not None
        rows = rows.write(stop_ids)
        if streamer is not None:
            _stream(rows, streamer, tokenizer.stop_ids)
        ended = rows.ended_R.nonzero()[:, 0].tolist()
        if len(ended) >= SHARE_ENDED * len(rows):
            yield [_reply(rows, row, tokenizer) for row in ended]
            staying = sorted(set(range(len(rows))) - set(ended))
            rows = rows.only(staying) if staying else None
        if rows is not None:
            rows = rows.advance(model)
    if refusals:
        raise refusals[0]


def _drafts(model: Any, tokenizer: ChatTokenizer, requests: Sequence[Request]) -> tuple[list[Draft], list[ZkitError]]:
    drafts, refusals = [], []
    for number, request in enumerate(requests):
        try:
            drafts.append(_draft(model, tokenizer, number, request))
        except ZkitError as error:
            refusals.append(error)
        except ExampleError as error:
            refusals.append(ZkitError(f"no reply can be asked for: {error}"))
    return drafts, refusals


def _draft(model: Any, tokenizer: ChatTokenizer, number: int, request: Request) -> Draft:
    prompt, limit = tuple(tokenizer.prompt_ids(request.dialogue)), request.sampling.max_new_tokens
    if positions := getattr(model.config, "max_position_embeddings", None):
        limit = min(limit, positions - len(prompt))
        if limit < 1:
            raise ZkitError(f"the dialogue is longer than the model's positions ({len(prompt):,} tokens of {positions:,})")
    return Draft(number, prompt, limit, request.sampling)


def _take(waiting: deque[Draft], rows: Rows | None, budget: int) -> list[Draft]:
    """Take from those waiting as many as there is room for."""
    taken: list[Draft] = []
    prompts: set[tuple[int, ...]] = set()
    there = () if rows is None else rows.drafts
    columns = max((draft.longest for draft in there), default=0)
    while waiting:
        draft, num_rows = waiting[0], len(there) + len(taken) + 1
        columns = max(columns, draft.longest)
        prompts.add(draft.prompt)
        num_read = len(prompts) * len((taken or [draft])[0].prompt)
        is_full = num_rows > MOST_ROWS or num_rows * columns > budget
        if (is_full and num_rows > 1) or (num_read > TOKENS_READ_AT_ONCE and taken):
            break
        taken.append(waiting.popleft())
    return taken


def _most_columns(model: Any, device: torch.device) -> int:
    """How many tokens' keys and values there is memory for."""
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token: int = 2 * config.num_hidden_layers * config.num_key_value_heads * size * model.dtype.itemsize
    if device.type != "cuda":
        return BYTES_ON_CPU // per_token
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(SHARE_OF_GPU * (torch.cuda.mem_get_info(device)[0] + kept)) // per_token


def _reply(rows: Rows, row: int, tokenizer: ChatTokenizer) -> tuple[int, Reply]:
    ids = rows.written_RL[row, : int(rows.count_R[row])].tolist()
    finished = ids[-1] in tokenizer.stop_ids
    text = tokenizer.tokens.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
    draft = rows.drafts[row]
    return draft.number, Reply(text.strip(), finished, num_read=len(draft.prompt), num_written=len(ids))


def _stream(rows: Rows, streamer: Any, stop_ids: Sequence[int]) -> None:
    token = rows.written_RL[0, rows.count_R[0] - 1].cpu()
    if int(token) not in stop_ids:
        streamer.put(token[None])
    if rows.ended_R[0]:
        streamer.end()


def _streamer(tokenizer: ChatTokenizer, on_text: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: FBT001, FBT002  transformers' signature
            on_text(text)

    return Streamer(tokenizer.tokens, skip_special_tokens=True)

"""Replies in the shapes of OpenAI's API (platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zephyr_kit.serving.speaker import Spoken

OWNER = "zephyr-kit"


def models(names: Iterable[str], since: int) -> dict[str, Any]:
    """The list of models."""
    return {"object": "list", "data": [{"id": name, "object": "model", "created": since, "owned_by": OWNER} for name in names]}


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply, whole or in pieces, under one id."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, spoken: Spoken) -> dict[str, Any]:
        """All at once."""
        message = {"role": "assistant", "content": spoken.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": spoken.ending}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(spoken)}

    def first(self) -> dict[str, Any]:
        """The piece that says who speaks."""
        return self._piece({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> dict[str, Any]:
        """Some words."""
        return self._piece({"content": text}, None)

    def last(self, spoken: Spoken) -> dict[str, Any]:
        """Why there are no more."""
        return self._piece({}, spoken.ending)

    def count(self, spoken: Spoken) -> dict[str, Any]:
        """How many tokens there were."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(spoken)}

    def _piece(self, delta: dict[str, str], ending: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": ending}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(spoken: Spoken) -> dict[str, int]:
    """Tokens read and written."""
    total = spoken.num_read + spoken.num_written
    return {"prompt_tokens": spoken.num_read, "completion_tokens": spoken.num_written, "total_tokens": total}

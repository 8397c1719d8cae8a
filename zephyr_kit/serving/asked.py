"""A request to `/v1/chat/completions`, checked: what cannot be honoured is refused, and not left out in silence."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.config import suggest
from zephyr_kit.example import Message
from zephyr_kit.protocols import Sampling

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
HEEDED = ("model", "messages", "temperature", "top_p", "top_k", "seed", "max_tokens", "max_completion_tokens", "stop", "stream", "n")
PASSED_OVER = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options")
"""What changes no reply here; of `stream_options`, `include_usage` is heeded."""
AT_REST: Mapping[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": False,
    "top_logprobs": 0,
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "logit_bias": {},
    "modalities": ["text"],
}
"""What is not offered, and the value with which it asks for nothing."""
MOST_STOPS = 4
SEEDS = 2**31


class ApiError(ZkitError):
    """A request that is not answered, and what OpenAI's clients are told of it."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        kind = "server_error" if self.status >= 500 else "authentication_error" if self.status == 401 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Asked:
    """A reply that is wanted."""

    model: str
    dialogue: tuple[Message, ...]
    sampling: Sampling
    stops: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    """Whether the last piece of a stream says how many tokens there were."""


def read(body: Any, models: Collection[str], usual: Sampling) -> Asked:
    """The request of a body; what it leaves out is as in `usual`, but the seed, which is drawn. Raises ApiError."""
    if not isinstance(body, dict):
        raise ApiError("the body should be a JSON object")
    _refuse_unknown(body)
    model = _of_type(body, "model", str, next(iter(models)))
    if model not in models:
        raise ApiError(f"there is no model `{model}`{suggest(model, models)}", status=404, param="model", code="model_not_found")
    if _of_type(body, "n", int, 1) != 1:
        raise ApiError("`n`: one reply is written for each request", param="n")
    options = _of_type(body, "stream_options", dict, {})
    stream = _of_type(body, "stream", bool, False)  # noqa: FBT003  a value
    return Asked(model, _dialogue(body), _sampling(body, usual), _stops(body), stream, bool(options.get("include_usage")))


def _refuse_unknown(body: Mapping[str, Any]) -> None:
    for key, value in body.items():
        if key in AT_REST:
            if value not in (None, AT_REST[key]):
                raise ApiError(f"`{key}` is not offered here; leave it out", param=key, code="unsupported_parameter")
        elif key not in HEEDED and key not in PASSED_OVER:
            raise ApiError(f"does not know `{key}`{suggest(key, HEEDED)}", param=key, code="unknown_parameter")


def _dialogue(body: Mapping[str, Any]) -> tuple[Message, ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError("`messages` should be a list of messages, and not empty", param="messages")
    found = tuple(_message(message, f"messages[{number}]") for number, message in enumerate(messages))
    if found[-1].role != "user":
        raise ApiError("the last of `messages` should be of the user: it is what is replied to", param="messages")
    return found


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise ApiError(f"`{where}.role` should be one of {', '.join(ROLES)}", param=where)
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ApiError(f"`{where}.content` should be a text, or a list of parts that are texts", param=where)
    # Half characters, which JSON can spell and no tokenizer can hold.
    return Message(ROLES[message["role"]], content.encode("utf-8", "replace").decode("utf-8"))


def _sampling(body: Mapping[str, Any], usual: Sampling) -> Sampling:
    limits = {_number(body, key, int, 1, None) for key in ("max_tokens", "max_completion_tokens")} - {None}
    if len(limits) > 1:
        raise ApiError("`max_tokens` and `max_completion_tokens` are two names for one limit; give one", param="max_tokens")
    given = {
        "max_new_tokens": next(iter(limits), None),
        "temperature": _number(body, "temperature", float, 0, 2),
        "top_p": _number(body, "top_p", float, 0, 1),
        "top_k": _number(body, "top_k", int, 0, None),
        "seed": _number(body, "seed", int, None, None),
    }
    return replace(usual, **{"seed": secrets.randbelow(SEEDS), **{key: value for key, value in given.items() if value is not None}})


def _number(body: Mapping[str, Any], key: str, kind: type, least: float | None, most: float | None) -> Any:
    value = body.get(key)
    if value is None:
        return None
    fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or (least is not None and value < least) or (most is not None and value > most):
        reach = "" if least is None else f" of {least:g} or more" if most is None else f" between {least:g} and {most:g}"
        raise ApiError(f"`{key}` = {value!r:.40}: should be a {'whole ' if kind is int else ''}number{reach}", param=key)
    return kind(value)


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    stops = body.get("stop")
    found = [] if stops is None else [stops] if isinstance(stops, str) else stops
    if not isinstance(found, list) or len(found) > MOST_STOPS or not all(isinstance(stop, str) and stop for stop in found):
        raise ApiError(f"`stop` should be a text, or at most {MOST_STOPS} of them", param="stop")
    return tuple(found)


def _of_type(body: Mapping[str, Any], key: str, kind: type, usual: Any) -> Any:
    value = body.get(key)
    if value is None:
        return usual
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ApiError(f"`{key}` = {value!r:.40}: should be of type {kind.__name__}", param=key)
    return value

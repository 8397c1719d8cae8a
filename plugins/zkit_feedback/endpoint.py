"""An OpenAI-compatible endpoint: where it is, how it is asked, and what it costs. Nothing here imports the client."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from annotated_types import Ge, Gt

from zephyr_kit import ZkitError
from zephyr_kit.example import Message
from zephyr_kit.protocols import Sampling

LIMITS = ("max_tokens", "max_completion_tokens")
OWN_KEYS = ("messages", "model", "n", "stream", "temperature", "top_p", "seed", *LIMITS)
"""Keys of a request that are the plugin's affair."""

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens."""

    input: Annotated[float, Ge(0)]
    output: Annotated[float, Ge(0)]

    def of(self, num_read: int, num_written: int) -> float:
        """What an answer cost, in US dollars."""
        return (num_read * self.input + num_written * self.output) / 1e6


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """What completers and judges behind an OpenAI-compatible endpoint share."""

    model: str
    """As the endpoint calls it."""
    base_url: str = "https://api.openai.com/v1"
    """Up to and without `/chat/completions`."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; empty where none is needed. For an address on this machine it may be unset."""
    concurrency: Annotated[int, Gt(0)] = 8
    """Requests under way at a time."""
    requests_per_minute: Annotated[int, Ge(0)] = 0
    """At most so many, new attempts included; 0 is no limit."""
    timeout: Annotated[float, Gt(0)] = 60.0
    """Seconds to wait for an answer."""
    retries: Annotated[int, Ge(0)] = 6
    """How often a request is sent again before it is given up."""
    backoff: Annotated[float, Gt(0)] = 1.0
    """Seconds before the first retry; each further one waits twice as long, unless the endpoint says how long."""
    price: Price | None = None
    """Without it, nobody knows what answers cost."""
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the limit of new tokens."""
    omit: tuple[Literal["temperature", "top_p", "seed"], ...] = ()
    """What the model refuses to be told, and decides by itself."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More keys for each request, as the endpoint's manual has them: { reasoning_effort = "low" }."""

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("`base_url` should be an address such as https://api.openai.com/v1")
        if "@" in url.netloc or url.query or url.fragment:
            raise ValueError("`base_url` holds a password or a query, which would be written into the run; name a key with `api_key_env`")
        if self.api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("`api_key_env` should be the name of an environment variable, never the key itself")
        for key in self.extra:
            if key in OWN_KEYS:
                raise ValueError(f"`extra.{key}`: is said by other keys of the table and its stage (see also `limit` and `omit`)")

    @property
    def place(self) -> str:
        """The address, in one spelling."""
        return self.base_url.rstrip("/")

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def key(self) -> str:
        """The key, from the environment; raises ZkitError where one is needed and not there, or cannot be one."""
        found = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if not found and self.api_key_env and not self.is_loopback:
            raise ZkitError(
                f"{self.place} needs a key, and the environment variable {self.api_key_env} is not set: "
                f'export {self.api_key_env}=…, or set `api_key_env` (`api_key_env = ""` where no key is needed)'
            )
        if not (found.isascii() and found.isprintable()):
            raise ZkitError(f"the environment variable {self.api_key_env} holds characters that are in no key, such as line breaks")
        return found

    def body(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        """The request as it is sent."""
        body = {
            **self.extra,
            "model": self.model,
            "messages": [{"role": message.role, "content": sendable(message.content)} for message in messages],
            self.limit: sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        return {key: value for key, value in body.items() if key not in self.omit}

    def draw(self, sampling: Sampling) -> int:
        """What tells apart equal requests that are to be drawn anew: the seed, where the request does not hold it."""
        return sampling.seed if "seed" in self.omit else 0

    def cost(self, num_read: int | None, num_written: int | None) -> float | None:
        """US dollars; None without a price, and where the endpoint does not say how many tokens there were."""
        if self.price is None or num_read is None or num_written is None:
            return None
        return self.price.of(num_read, num_written)

    def named(self) -> Mapping[str, Any]:
        """Who answers: the part of a fingerprint that completers and judges share."""
        shape = {"limit": self.limit, "omit": sorted(set(self.omit)), "extra": self.extra}
        return {"use": "openai", "model": self.model, "base_url": self.place, **shape}

    def reach_problems(self) -> list[str]:
        """No key, a wrong one, an address that does not answer, a model that it does not have; within three seconds."""
        from zkit_feedback.reach import endpoint_problems

        try:
            key = self.key()
        except ZkitError as error:
            return [str(error)]
        return endpoint_problems(self, key=key)


def total(amounts: Iterable[Number | None]) -> Number | None:
    """The sum, if all are known; 0 of none."""
    found = list(amounts)
    known = [amount for amount in found if amount is not None]
    return sum(known) if len(known) == len(found) else None


def sendable(text: str) -> str:
    """The text as UTF-8 can hold it: a lone half of a surrogate pair can neither be sent nor kept."""
    return text.encode("utf-8", "replace").decode()

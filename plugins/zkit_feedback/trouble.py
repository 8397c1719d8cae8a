"""What an endpoint's refusals mean: try again, give this request up, or stop it all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zephyr_kit import ZkitError

if TYPE_CHECKING:
    from zkit_feedback.endpoint import Endpoint

LONGEST_QUOTE = 300
SECRET = 8
"""Characters in a row that tell too much of a key."""
LONGEST_WAIT = 120.0
"""Seconds; who asks for more patience is asked again after so long."""
BROKE = ("insufficient_quota", "billing_hard_limit_reached")
PASSING = (408, 409, 425, 429)
"""Refusals that are for now; all from 500 on are too."""


class Unusable(Exception):
    """An answer that is not what was asked for, or a question that cannot be asked: why, and the particulars."""

    def __init__(self, reason: str, particulars: str = "") -> None:
        super().__init__(bracketed(reason, particulars))
        self.reason, self.particulars = reason, particulars


class Unreadable(Exception):
    """What came back is no answer at all, as when a line breaks in the middle."""


class Withheld(Exception):
    """The endpoint's own filter keeps the answer back."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a request was not answered."""

    reason: str
    """In words that can be counted."""
    again: bool
    """Whether it is worth another attempt."""
    particulars: str = ""
    wait: float | None = None
    """Seconds that the endpoint asks for."""
    absent: bool = False
    """Whether nobody is there at all, which is not about this request."""
    advice: str = ""
    """What to do if every request is refused like this."""


def bracketed(reason: str, *particulars: str) -> str:
    """Words that can be counted, and what cannot in brackets at the end."""
    said = [" ".join(one.split()) for one in particulars if one]
    return f"{reason} ({'; '.join(said)})" if said else reason


def read_trouble(error: Exception, endpoint: Endpoint, *, key: str) -> Trouble:
    """What went wrong; raises ZkitError for what will go wrong with every request."""
    import openai

    if isinstance(error, Unusable):
        return Trouble(error.reason, again=True, particulars=error.particulars)
    if isinstance(error, Unreadable):
        return Trouble("the endpoint's answer cannot be read", again=True, particulars=str(error))
    if isinstance(error, Withheld):
        return Trouble("the endpoint's content filter withheld the answer", again=False)
    if isinstance(error, openai.APITimeoutError):
        return Trouble("no answer in time", again=True, particulars=f"within {endpoint.timeout:g} s")
    if isinstance(error, openai.APIConnectionError):
        absent = type(error.__cause__).__name__ == "ConnectError"
        return Trouble("the connection failed", again=True, particulars=connection_failure(error, key), absent=absent)
    if not isinstance(error, openai.APIStatusError):
        raise error
    return _read_status(error, endpoint, key=key)


def _read_status(error: Any, endpoint: Endpoint, *, key: str) -> Trouble:
    status, said = error.status_code, quote(error, key)
    if status == 401:
        # Not quoted: some endpoints repeat the key, or half of it.
        raise ZkitError(_key_refused(endpoint, status, key))
    if status == 402 or error.code in BROKE:
        raise ZkitError(f"{endpoint.place} has no credit left for the key of {endpoint.api_key_env}: {said}; what was answered is kept")
    if status == 404:
        raise ZkitError(f"{endpoint.place} does not have model = {endpoint.model!r}, or base_url is not its address: {said}")
    if str(error.code).startswith("unsupported_"):
        raise ZkitError(f"{endpoint.place}: model = {endpoint.model!r} refuses a setting: {said} (see also `limit`, `omit` and `extra`)")
    passing = status in PASSING or status >= 500
    wait = _retry_after(error.response.headers) if passing else None
    # A gateway says 403 to a key, and to a single prompt that it does not like.
    advice = _key_refused(endpoint, status, key) if status == 403 else ""
    return Trouble(f"the endpoint answers {status}", again=passing, particulars=said, wait=wait, advice=advice)


def _key_refused(endpoint: Endpoint, status: int, key: str) -> str:
    if not key:
        mend = f"set the environment variable {endpoint.api_key_env}" if endpoint.api_key_env else "name one with `api_key_env`"
        return f"{endpoint.place} answers {status}, for want of a key: {mend}"
    return (
        f"{endpoint.place} answers {status} to the key in the environment variable {endpoint.api_key_env}: "
        f"set it to a key of this endpoint that may use model = {endpoint.model!r}, or name another with `api_key_env`"
    )


def connection_failure(error: Exception, key: str) -> str:
    """Why there was no connection, in the words of who tried."""
    cause = error.__cause__ or error
    return _clean(str(cause), key) or type(cause).__name__


def quote(error: Any, key: str) -> str:
    """What the endpoint said."""
    body = error.body if isinstance(error.body, dict) else {}
    return _clean(str(body.get("message") or error.message), key)


def _clean(said: str, key: str) -> str:
    """In one line, not too long, and without the key or a piece of it."""
    pieces = {key[start : start + SECRET] for start in range(max(len(key) - SECRET, 0) + 1)} - {""}
    return " ".join("…" if any(piece in word for piece in pieces) else word for word in said.split())[:LONGEST_QUOTE]


def _retry_after(headers: Any) -> float | None:
    """The seconds of a Retry-After; None for a date, or for nothing sensible."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(seconds, LONGEST_WAIT) if seconds >= 0 else None

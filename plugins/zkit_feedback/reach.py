"""Whether an endpoint can be used, found out within three seconds."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from zephyr_kit import ZkitError
from zephyr_kit.config import did_you_mean
from zephyr_kit.patience import within
from zkit_feedback.client import connect
from zkit_feedback.trouble import connection_failure, read_trouble

if TYPE_CHECKING:
    from zkit_feedback.endpoint import Endpoint

SECONDS, SECONDS_TO_CALL = 2.0, 0.5
FEW = 8


def endpoint_problems(endpoint: Endpoint, *, key: str) -> list[str]:
    """An address that does not answer, a key that it refuses, a model that it does not have."""
    problem = within(SECONDS, partial(_problem, endpoint, key))
    # A server that is busy answers late; one that is not there does not even take the call.
    if problem is None and not within(SECONDS_TO_CALL, partial(_takes_calls, endpoint)):
        problem = f"{endpoint.place} does not answer within {SECONDS:g} s"
    return [problem] if problem else []


def _takes_calls(endpoint: Endpoint) -> bool:
    url = urlsplit(endpoint.base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    with suppress(OSError), socket.create_connection((url.hostname, port), timeout=SECONDS_TO_CALL):
        return True
    return False


def _problem(endpoint: Endpoint, key: str) -> str:
    import openai

    connection = connect(endpoint, key=key, timeout=SECONDS)
    try:
        listed = connection.models.with_raw_response.list().text
    except openai.APIConnectionError as error:
        failed = f"the connection failed ({connection_failure(error, key)})"
        return f"{endpoint.place}: {failed}; see that it runs and that base_url is its address"
    except openai.APIStatusError as error:
        return _refusal(error, endpoint, key)
    finally:
        connection.close()
    return _unlisted(endpoint, listed)


def _refusal(error: Exception, endpoint: Endpoint, key: str) -> str:
    """Why no request will succeed; nothing when only the list of models is not to be had, as with a 403."""
    if getattr(error, "status_code", 0) != 401:
        return ""
    try:
        read_trouble(error, endpoint, key=key)
    except ZkitError as refused:
        return str(refused)
    return ""


def _unlisted(endpoint: Endpoint, listed: str) -> str:
    try:
        names = sorted(str(model["id"]) for model in json.loads(listed)["data"])
    except (ValueError, LookupError, TypeError):
        return ""  # it lists them in a way of its own, or not at all
    if not names or endpoint.model in names:
        return ""
    there = f"; there is {', '.join(names[:FEW])}{', …' if len(names) > FEW else ''}"
    return f"{endpoint.place} has no model = {endpoint.model!r}{did_you_mean(endpoint.model, names) or there}"

"""Replies of a loaded model, some of which may fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zephyr_kit import ZkitError
from zephyr_kit.protocols import Failure, Policy, Reply, Request


def replies_of(policy: Policy, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Failure]]:
    """What the policy replies to each request; one that it cannot answer is asked by itself, and fails by itself."""
    left = dict.fromkeys(range(len(requests)))
    try:
        for number, reply in policy.generate(requests):
            del left[number]
            yield number, reply
    except ZkitError as error:
        if len(requests) == 1:
            yield 0, Failure(str(error))
            return
        for number in left:
            for _, answer in replies_of(policy, [requests[number]]):
                yield number, answer

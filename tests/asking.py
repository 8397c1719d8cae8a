"""Asking the endpoint on this machine, as several tests do."""

from __future__ import annotations

import socket
from typing import Any

import torch
from loopback import MODEL, Loopback
from small_model import Said
from zkit_feedback.completer import EndpointCompleter

from zephyr_kit.example import Message
from zephyr_kit.protocols import Bench, Case, Failure, Judge, Judgement, Reply, Request, Sampling

CPU = torch.device("cpu")


def echo(body: dict[str, Any]) -> Said:
    last = body["messages"][-1]["content"]
    if "too long" in last:
        raise ValueError("the request is too long")
    return Said(f"I heard: {last}", "stop", num_read=len(last.split()), num_written=3)


def completer(server: Loopback | None = None, **keys: Any) -> EndpointCompleter:
    place = {"base_url": server.base_url} if server else {}
    return EndpointCompleter(**{"model": MODEL, "backoff": 0.002, "timeout": 60.0, **place, **keys})


def requests(count: int, text: str = "What is {0} and {0}?") -> list[Request]:
    return [Request((Message("user", text.format(number)),), Sampling(max_new_tokens=8, seed=number)) for number in range(count)]


def write(who: EndpointCompleter, wanted: list[Request], bench: Bench) -> list[Reply | Failure]:
    found = dict(who.complete(wanted, bench))
    assert sorted(found) == list(range(len(wanted)))
    return [found[number] for number in range(len(wanted))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def judged(who: Judge, cases: list[Case], bench: Bench) -> list[Judgement | Failure]:
    found = dict(who.judge(cases, bench))
    assert sorted(found) == list(range(len(cases)))
    return [found[number] for number in range(len(cases))]

"""An OpenAI-compatible server on this machine, with a real small model and, if wanted, with faults.

In a test: `with Loopback(mind) as server: server.base_url`. As a process of its own, to be
killed: `python tests/loopback.py --port 8123 --weights FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from small_model import Body, Said, SmallModel

MODEL = "loopback"

Mind = Callable[[Body], Said]
"""What answers a request."""

FAULTS = ("limited", "broken", "slow", "silent", "garbled", "truncated", "closed", "nonsense")


@dataclass(frozen=True)
class Faults:
    """Which attempt at which request goes wrong, and how: a function of the seed, the request and the attempt."""

    rates: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    retry_after: float = 0.05
    slowness: float = 0.1
    """Seconds that a slow answer takes."""
    silence: float = 1.0
    """Seconds until a connection is closed that nothing was said on."""
    most: int | None = None
    """No more than so many faults for each request."""

    def of(self, request: str, attempt: int) -> str:
        """The name of a fault; empty when all goes well."""
        if self.most is not None and attempt >= self.most:
            return ""
        point = random.Random(f"{self.seed} {attempt} {request}").random()
        for name, rate in self.rates.items():
            assert name in FAULTS, name
            if point < rate:
                return name
            point -= rate
        return ""


class Loopback:
    """The server. It counts the requests that came, and those that were answered, by their bodies."""

    def __init__(self, mind: Mind, *, faults: Faults | None = None, key: str | None = None, port: int = 0) -> None:
        self.mind, self.faults, self.key, self.port = mind, faults or Faults(), key, port
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()
        """How many faults of each kind there were."""
        self._lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Begin, or begin again on the same port."""
        handler = type("Bound", (Handler,), {"loopback": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        """No longer be there; what is under way still ends."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Loopback:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def fault(self, request: str) -> str:
        """Count a request, and say what is to go wrong with it."""
        with self._lock:
            fault = self.faults.of(request, self.asked[request])
            self.asked[request] += 1
            self.struck.update([fault] if fault else [])
        return fault

    def count_answer(self, request: str) -> None:
        with self._lock:
            self.answered[request] += 1


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    loopback: Loopback

    def handle(self) -> None:
        with suppress(ConnectionError):  # who asked has hung up
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._may_enter():
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._may_enter():
            return
        body = json.loads(sent)
        if body["model"] != MODEL:
            self._refuse(404, "model_not_found", f"there is no model {body['model']}")
            return
        request = json.dumps(body, sort_keys=True)
        getattr(self, f"_{self.loopback.fault(request) or 'answer'}")(body, request)

    def _may_enter(self) -> bool:
        key = self.loopback.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self._refuse(401, "invalid_api_key", f"wrong key: {self.headers['Authorization']}")
        return False

    def _answer(self, body: Body, request: str) -> None:
        try:
            said = self.loopback.mind(body)
        except ValueError as error:
            self._refuse(400, "context_length_exceeded", str(error))
            return
        self._send(200, self._completion(said))
        self.loopback.count_answer(request)

    def _limited(self, body: Body, request: str) -> None:
        self._refuse(429, "rate_limit_exceeded", "too many requests", retry_after=self.loopback.faults.retry_after)

    def _broken(self, body: Body, request: str) -> None:
        self._refuse(500, "server_error", "something broke")

    def _slow(self, body: Body, request: str) -> None:
        time.sleep(self.loopback.faults.slowness)
        self._answer(body, request)

    def _silent(self, body: Body, request: str) -> None:
        time.sleep(self.loopback.faults.silence)

    def _garbled(self, body: Body, request: str) -> None:
        self._send(200, b'{"choices": [{"message": {"content": "half of')

    def _truncated(self, body: Body, request: str) -> None:
        sent = json.dumps(self._completion(Said("never read"))).encode()
        self._send(200, sent[: len(sent) // 2], length=len(sent))

    def _closed(self, body: Body, request: str) -> None:
        pass

    def _nonsense(self, body: Body, request: str) -> None:
        """A proper answer, but not in the form that was asked for."""
        if "response_format" in body:
            self._send(200, self._completion(Said('{"A": {"grade": 11}}')))
        else:
            self._answer(body, request)

    def _completion(self, said: Said) -> Body:
        message = {"role": "assistant", "content": said.text}
        usage = {"prompt_tokens": said.num_read, "completion_tokens": said.num_written, "total_tokens": said.num_read + said.num_written}
        choice = {"index": 0, "message": message, "finish_reason": said.ending}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice], "usage": usage}

    def _refuse(self, status: int, code: str, message: str, *, retry_after: float | None = None) -> None:
        self._send(status, {"error": {"code": code, "message": message}}, retry_after=retry_after)

    def _send(self, status: int, sent: Body | bytes, *, length: int | None = None, retry_after: float | None = None) -> None:
        data = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--faults", type=json.loads, default={}, help='how often what goes wrong, as {"limited": 0.1}')
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    server = Loopback(SmallModel(options.weights), faults=Faults(options.faults, options.seed), port=options.port)
    server.start()
    sys.stdout.write(f"{server.base_url}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()

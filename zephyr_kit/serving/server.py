"""The server. It listens on 127.0.0.1 alone, and answers nobody but this machine's programs and its own page.

Python's own http.server: a well-kept one with more to it (uvicorn, starlette) is not among what the
package stands on already, and one model writes one reply at a time, whatever stands before it.
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from typing import Any

from zephyr_kit import ZkitError, __version__
from zephyr_kit.loopback import ALONE, HOST, SAFE, SECONDS, Forbidden, LoopbackServer
from zephyr_kit.protocols import Request, Sampling
from zephyr_kit.serving.asked import ApiError, Asked, read
from zephyr_kit.serving.speaker import Speaker
from zephyr_kit.serving.told import Completion, models

MOST_BYTES = 4 * 2**20
"""Of a request: no dialogue that a model can read is longer."""
NONCE = "NONCE"
CHAT, MODELS, PAGE = "/v1/chat/completions", "/v1/models", "/"


class ChatServer:
    """Models under their names, the first of them the usual one. A `token`, where given, must be sent as a bearer's."""

    def __init__(self, speakers: Mapping[str, Speaker], usual: Sampling, *, port: int = 0, token: str | None = None) -> None:
        self.speakers, self.usual, self.since = speakers, usual, int(time.time())
        self._token = token
        handler = type("Bound", (_Handler,), {"chat": self})
        self._server = LoopbackServer(port, handler)
        self.port = self._server.server_port

    @property
    def address(self) -> str:
        """Where the page is; the API is under `/v1` of it."""
        return f"http://{HOST}:{self.port}"

    def run(self) -> None:
        """Answer until `stop`, or Ctrl-C."""
        try:
            self._server.serve_forever(poll_interval=0.1)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """Let `run` return; from another thread."""
        self._server.shutdown()

    def check(self, method: str, headers: Message[str, str]) -> None:
        """Refuse what a page of somebody else may have sent from this very machine, forms too."""
        try:
            self._server.check(headers)
        except Forbidden as error:
            raise ApiError(str(error), status=403, code=error.code) from error
        if method == "POST" and headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError("the body should be JSON: Content-Type: application/json", status=415)

    def check_token(self, headers: Message[str, str]) -> None:
        """Raise ApiError for who does not know the token."""
        given = headers.get("Authorization", "").removeprefix("Bearer ").encode("utf-8", "replace")
        if self._token is not None and not hmac.compare_digest(given, self._token.encode()):
            raise ApiError("a token is needed: Authorization: Bearer …", status=401, code="invalid_api_key")

    def page(self, nonce: str) -> bytes:
        """The page to chat on, whose own script and style the nonce lets run."""
        return self._page.replace(NONCE, nonce).encode("utf-8")

    @cached_property
    def _page(self) -> str:
        return files(__package__).joinpath("page.html").read_text("utf-8")


class _Handler(BaseHTTPRequestHandler):
    chat: ChatServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = f"zkit/{__version__}", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        """The page, and the models."""
        self._answer("GET")

    def do_POST(self) -> None:
        """A chat."""
        self._answer("POST")

    def log_message(self, *_: Any) -> None:
        """Say nothing: what is talked about is nobody's business."""

    def _answer(self, method: str) -> None:
        self._begun = False
        try:
            self.chat.check(method, self.headers)
            self._route(method, self.path.partition("?")[0])
        except ApiError as error:
            self._send(error.status, error.body())
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # who asked has gone
        except ZkitError as error:
            long = "longer than the model's positions" in str(error)
            self._send(400, ApiError(str(error), param="messages", code="context_length_exceeded" if long else None).body())
        except Exception as error:
            traceback.print_exc()  # told before it is answered: who asks reads both, and the server goes on
            self._send(500, ApiError(f"{type(error).__name__}: {error}", status=500).body())

    def _route(self, method: str, path: str) -> None:
        if (method, path) == ("GET", PAGE):
            self._send_page()
            return
        allowed = {MODELS: "GET", CHAT: "POST"}.get(path) or ("GET" if path.startswith(f"{MODELS}/") else None)
        if allowed is None:
            raise ApiError(f"there is no {path} here, but {MODELS}, {CHAT} and {PAGE}", status=404, code="unknown_url")
        if method != allowed:
            raise ApiError(f"{path} is for {allowed}", status=405)
        self.chat.check_token(self.headers)
        if path == CHAT:
            self._reply(read(self._body(), self.chat.speakers, self.chat.usual))
        else:
            self._send_models(path.removeprefix(MODELS).removeprefix("/"))

    def _send_models(self, name: str) -> None:
        found = models(self.chat.speakers, self.chat.since)
        if not name:
            self._send(200, found)
            return
        one = next((model for model in found["data"] if model["id"] == name), None)
        if one is None:
            raise ApiError(f"there is no model `{name}`", status=404, param="model", code="model_not_found")
        self._send(200, one)

    def _body(self) -> Any:
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal():
            self.close_connection = True
            raise ApiError("how long the body is must be said: Content-Length", status=411)
        if int(size) > MOST_BYTES:
            self.close_connection = True
            raise ApiError(f"the body is longer than {MOST_BYTES:,} bytes", status=413)
        try:
            return json.loads(self.rfile.read(int(size)))
        except (ValueError, RecursionError) as error:
            raise ApiError(f"the body is not JSON: {error}") from error

    def _reply(self, asked: Asked) -> None:
        speaker, told = self.chat.speakers[asked.model], Completion(asked.model)
        request = Request(asked.dialogue, asked.sampling)
        if not asked.stream:
            self._send(200, told.whole(speaker.speak(request, asked.stops)))
            return
        # Before the first word all that may be wrong is told by a status; so the head waits for it.
        spoken = speaker.speak(request, asked.stops, on_text=lambda text: self._stream(told, told.piece(text)))
        self._stream(told, told.last(spoken))
        if asked.usage:
            self._stream(told, told.count(spoken))
        self.wfile.write(b"data: [DONE]\n\n")

    def _stream(self, told: Completion, piece: dict[str, Any]) -> None:
        if not self._begun:
            self._head(200, "text/event-stream", {"Cache-Control": "no-store", "Connection": "close"})
            self.close_connection = True
            self._event(told.first())
        self._event(piece)

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n\n")
        self.wfile.flush()

    def _send(self, status: int, value: dict[str, Any]) -> None:
        if self._begun:  # in the middle of a stream
            with suppress(OSError):
                self._event(value)
            return
        if self.command == "POST":
            self.close_connection = True  # a body that was not read would be taken for the next request
        data = json.dumps(value, ensure_ascii=False).encode("utf-8")
        with suppress(OSError):
            self._head(status, "application/json; charset=utf-8", {"Content-Length": str(len(data))})
            self.wfile.write(data)

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; img-src data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
        data = self.chat.page(nonce)
        self._head(200, "text/html; charset=utf-8", {"Content-Length": str(len(data)), "Content-Security-Policy": f"{policy}; {ALONE}"})
        self.wfile.write(data)

    def _head(self, status: int, kind: str, more: Mapping[str, str]) -> None:
        self._begun = True
        self.send_response(status)
        for name, value in {"Content-Type": kind, **SAFE, **more}.items():
            self.send_header(name, value)
        if self.close_connection and "Connection" not in more:
            self.send_header("Connection", "close")
        self.end_headers()

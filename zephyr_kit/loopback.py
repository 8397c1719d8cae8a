"""What every server here has in common: it listens on this machine alone, and answers nobody else's pages."""

from __future__ import annotations

from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from zephyr_kit import ZkitError

HOST = "127.0.0.1"
SECONDS = 60.0
"""For a request to come in."""
SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
ALONE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Of a page's policy: it stands in no other page, and sends nothing elsewhere."""


class Forbidden(ZkitError):
    """A request from a page of somebody else; `code` says by which sign."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class LoopbackServer(ThreadingHTTPServer):
    """A server on loopback. Raises ZkitError where its port is not to be had."""

    daemon_threads = True

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        try:
            super().__init__((HOST, port), handler)
        except OSError as error:
            raise ZkitError(f"port {port} of {HOST} is not to be had: {error.strerror}; choose another with --port") from error

    def check(self, headers: Message[str, str]) -> None:
        """Refuse what a page of somebody else may have sent from this very machine, also by a name that leads here (DNS rebinding)."""
        own = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}
        if headers.get("Host") not in own:
            raise Forbidden(f"this is {HOST}:{self.server_port}, and answers to no other name", "forbidden_host")
        origin = headers.get("Origin")
        if origin is not None and origin not in {f"http://{name}" for name in own}:
            raise Forbidden("pages of others are not answered", "forbidden_origin")

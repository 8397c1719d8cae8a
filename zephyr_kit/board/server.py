"""The page and its figures, over HTTP, to this machine alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from zephyr_kit.board.watch import Watch, curves, summary

LOOPBACK = "127.0.0.1"
TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
PAGE = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src data: blob:; base-uri 'none'"
"""Nothing from elsewhere. Styles in the page are the plotting library's."""
Answer = tuple[str, bytes]
"""A content type, and what is answered."""


class Board(ThreadingHTTPServer):
    """A server on loopback. It changes nothing: it only reads."""

    daemon_threads = True

    def __init__(self, watch: Watch, port: int) -> None:
        super().__init__((LOOPBACK, port), Handler)
        self.watch = watch

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    @cached_property
    def hosts(self) -> frozenset[str]:
        """Names under which it answers: a page of another site that has its own name point here is refused."""
        return frozenset(f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost"))

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer | None:
        """What stands at a path; None if nothing does."""
        if path in PAGE:
            name = PAGE[path]
            return TYPES[name.rpartition(".")[2]], (files("zephyr_kit.board") / name).read_bytes()
        made: Callable[[], Answer] | None = {"/plotly.js": _plotly, "/runs": self._runs, "/curves": lambda: self._curves(query)}.get(path)
        return made() if made else None

    def _runs(self) -> Answer:
        return _json({"folder": str(self.watch.folder.absolute()), **summary(self.watch.runs())})

    def _curves(self, query: Mapping[str, list[str]]) -> Answer:
        runs = self.watch.runs()
        return _json({name: {"version": runs[name].version, "stages": curves(runs[name])} for name in query.get("run", ()) if name in runs})


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Board
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802  http.server's way
        """Answer with what stands there, unless it is asked for under another name."""
        if self.headers.get("Host") not in self.server.hosts:
            self.send_error(HTTPStatus.FORBIDDEN, "This board answers to its own address alone")
            return
        parts = urlsplit(self.path)
        found = self.server.answer(parts.path, parse_qs(parts.query))
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        kind, body = found
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        # The library is large, and a version of it never changes.
        self.send_header("Cache-Control", "max-age=3600" if parts.path == "/plotly.js" else "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's name
        """Say nothing: the page asks every second."""


def _plotly() -> Answer:
    from plotly.offline import get_plotlyjs

    return TYPES["js"], get_plotlyjs().encode()


def _json(value: Any) -> Answer:
    return "application/json", json.dumps(value, allow_nan=False, default=str).encode()

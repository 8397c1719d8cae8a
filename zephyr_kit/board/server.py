"""The page and its figures, over HTTP, to this machine alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from zephyr_kit.board.watch import Watch, summary
from zephyr_kit.config import plain
from zephyr_kit.facts import read_run
from zephyr_kit.loopback import ALONE, HOST, SAFE, SECONDS, Forbidden, LoopbackServer
from zephyr_kit.report.plots import axes, curve_plots
from zephyr_kit.runs import RunError

TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
OWN = {"/": "board.html", "/board.js": "board.js", "/parts.js": "parts.js", "/board.css": "board.css"}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src data: blob:; "
POLICY += ALONE
"""Of the board's page: nothing from elsewhere. Styles within it are the plotting library's."""
FEWEST_POINTS, MOST_POINTS, ALL_POINTS = 50, 500, 10_000
"""Of a curve, and of all curves of one kind: where many runs are compared, each has fewer."""
OF_REPORTS = f"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; {ALONE}"
"""A report's script and style stand in its page."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What stands at a path."""

    kind: str
    body: bytes
    policy: str = POLICY
    keep: str = "no-store"


class Board(LoopbackServer):
    """A server on loopback. It changes nothing: it only reads."""

    def __init__(self, watch: Watch, port: int) -> None:
        super().__init__(port, Handler)
        self.watch = watch

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_port}/"

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer | None:
        """What stands at a path; None if nothing does."""
        if path in OWN:
            return _file("zephyr_kit.board", OWN[path])
        made: Mapping[str, Callable[[], Answer | None]] = {
            "/page.css": lambda: _file("zephyr_kit.report", "page.css"),
            "/drawing.js": lambda: _file("zephyr_kit.report", "drawing.js"),
            "/plotly.js": _plotly,
            "/runs": self._runs,
            "/curves": lambda: self._curves(query),
            "/report": lambda: self._report(query),
        }
        return made[path]() if path in made else None

    def _runs(self) -> Answer:
        return _json({"folder": str(self.watch.folder.absolute()), "runs": summary(self.watch.runs())})

    def _curves(self, query: Mapping[str, list[str]]) -> Answer:
        """The plots of the report, of one stage of some runs."""
        names = self.watch.known(query.get("run", ()))
        most = min(MOST_POINTS, max(FEWEST_POINTS, ALL_POINTS // max(1, len(names))))
        runs = [self.watch.read(name, most) for name in names]
        plots = [{**plain(plot), "told": plot.told} for stage in query.get("stage", ()) for plot in curve_plots(runs, stage)]
        return _json({"runs": names, "plots": plots, "axes": axes(runs)})

    def _report(self, query: Mapping[str, list[str]]) -> Answer | None:
        """The report of some runs, made now; its script stands in the page."""
        from zephyr_kit.report.page import page

        self.watch.runs()  # a page that is asked for first
        runs = [read_run(self.watch.folder / name) for name in self.watch.known(query.get("run", ()))]
        return Answer(TYPES["html"], page(runs).encode(), policy=OF_REPORTS) if runs else None


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Board
    protocol_version = "HTTP/1.1"
    timeout = SECONDS

    def do_GET(self) -> None:
        """Answer with what stands there, unless it is asked for under another name."""
        try:
            self.server.check(self.headers)
            parts = urlsplit(self.path)
            found = self.server.answer(parts.path, parse_qs(parts.query))
        except Forbidden as error:
            self.send_error(HTTPStatus.FORBIDDEN, str(error))
            return
        except (RunError, KeyError, OSError):  # a run that has just been removed, or cannot be read
            found = None
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        headers = {"Content-Type": found.kind, "Content-Security-Policy": found.policy, "Cache-Control": found.keep, **SAFE}
        self.send_response(HTTPStatus.OK)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(found.body)))
        with suppress(ConnectionError):  # the page has gone meanwhile
            self.end_headers()
            self.wfile.write(found.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's name
        """Say nothing: the page asks every second."""


def _file(package: str, name: str) -> Answer:
    return Answer(TYPES[name.rpartition(".")[2]], (files(package) / name).read_bytes())


def _plotly() -> Answer:
    from plotly.offline import get_plotlyjs

    # Large, and a version of it never changes.
    return Answer(TYPES["js"], get_plotlyjs().encode(), keep="max-age=3600")


def _json(value: Any) -> Answer:
    return Answer("application/json", json.dumps(value, allow_nan=False, default=str).encode())

"""The report as one HTML file, which needs nothing beside it and no network."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from importlib.resources import files

import jinja2
from markupsafe import Markup

from zephyr_kit import __version__
from zephyr_kit.facts import RunFacts
from zephyr_kit.report import phrases
from zephyr_kit.report.views import View, as_toml


def page(runs: Sequence[RunFacts]) -> str:
    """The page as text."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    named = ("sentence", "headline", "lineage", "ledger", "filtered", "reasons", "agreements", "evaluated", "measures", "costs")
    environment.filters |= {name: getattr(phrases, name) for name in named}
    environment.filters |= {"rows": phrases.settings_that_differ, "toml": as_toml}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    own = {name: Markup(_text(f"page.{name}")) for name in ("css", "js")}  # noqa: S704  our own files
    return environment.from_string(_text("page.html")).render(view=View(runs), version=__version__, plotly=packed_plotly(), **own)


def _text(name: str) -> str:
    return files("zephyr_kit.report").joinpath(name).read_text("utf-8")


def packed_plotly() -> str:
    """The library as the page unpacks it; the same bytes each time."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode("utf-8"), mtime=0)).decode("ascii")

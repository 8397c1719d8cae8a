"""The report as one HTML file, which needs nothing beside it and no network."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from zephyr_kit import __version__
from zephyr_kit.facts import RunFacts
from zephyr_kit.report import phrases
from zephyr_kit.report.views import View, as_toml


def page(runs: Sequence[RunFacts]) -> str:
    """The page as text."""
    named = ("sentence", "headline", "lineage", "ledger", "filtered", "reasons", "agreements", "evaluated", "measures", "costs")
    filters = {name: getattr(phrases, name) for name in named}
    view = View(runs)
    return rendered(_text("page.html"), {**filters, "rows": phrases.settings_that_differ, "toml": as_toml}, view=view, data=view.for_page())


def rendered(template: str, filters: Mapping[str, Callable[..., Any]], **about: Any) -> str:
    """A template that stands in the frame of a report, with all that its plots need."""
    loader = jinja2.FunctionLoader(_text)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= filters
    environment.policies |= {"json.dumps_kwargs": {"separators": (",", ":")}, "json.dumps_function": _dumps}
    own = {"css": Markup(_text("page.css")), "js": Markup(_text("drawing.js") + _text("page.js"))}  # noqa: S704  our own files
    return environment.from_string(template).render(version=__version__, plotly=_plotly(), **about, **own)


def _dumps(value: Any, **keys: Any) -> str:
    """JSON as a browser reads it, null for what is not finite."""
    return json.dumps(_finite(value), allow_nan=False, **keys)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(name: str) -> str:
    return files("zephyr_kit.report").joinpath(name).read_text("utf-8")


def _plotly() -> str:
    """The library as the page unpacks it; the same bytes each time."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode("utf-8"), mtime=0)).decode("ascii")

"""Equations between dollar signs as MathML, which browsers set by themselves: no script, no font, no network."""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Extension
from markdown.inlinepatterns import InlineProcessor

EQUATION = r"\$(?=\S)([^$]+?)(?<=\S)\$"
THIN = '<mspace width="0.17em"/>'
SET = (
    (r"(</mi>|</msub>|</mfrac>|&#x00029;</mo>)(?=<mi>(?:log|exp)</mi>)", rf"\1{THIN}"),  # A function stands apart from a factor,
    (r"(<mi>(?:log|exp)</mi>)(?!<mo[^>]*>&#x00028;|</)", rf"\1{THIN}"),  # and from its argument, if that has no bracket;
    (r"(&#x00028;</mo>)<mo>(&#x02212;|&#x000B1;)</mo>", r'\1<mo form="prefix">\2</mo>'),  # a sign is no difference,
    (r"<msup>(<mi>\w</mi>)<mi>&#x02032;</mi></msup>", r"\1<mo>&#x02032;</mo>"),  # and a prime is raised by itself.
    (r"<mo>max</mo>", "<mi>max</mi>"),  # A name is no operator.
)
"""What the converter leaves to be done."""
AFTER_CODE = 185
"""Of the priorities of patterns, between those of code (190) and of backslashes (180)."""


class Equations(Extension):
    """Turns `$LaTeX$` into MathML; GitHub sets the same."""

    def extendMarkdown(self, md: Any) -> None:  # noqa: N802  markdown's name
        """Add the pattern."""
        md.inlinePatterns.register(Equation(EQUATION, md), "equations", AFTER_CODE)


class Equation(InlineProcessor):
    """One equation."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element | str | None, int | None, int | None]:  # noqa: N802
        """Put the MathML by, where nothing else of the page's language is looked for in it."""
        return self.md.htmlStash.store(as_mathml(m[1])), m.start(0), m.end(0)


def as_mathml(latex: str) -> str:
    """An equation in a line of text; raises what is no LaTeX."""
    made: str = convert(latex)
    for found, better in SET:
        made = re.sub(found, better, made)
    return made

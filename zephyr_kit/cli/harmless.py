"""Text of models, data and endpoints, as a terminal may be given it."""

from __future__ import annotations

DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Embeddings, overrides and isolates (Unicode's annex 9): they change the order in which what follows is shown."""


def harmless(text: str) -> str:
    """With control characters shown instead of obeyed, but for line ends and tabs: no sequence of them is left, however it was cut up."""
    return "".join(letter if letter in "\n\t" or not _steers(letter) else _shown(ord(letter)) for letter in text)


def _steers(letter: str) -> bool:
    """Of C0, C1, or DEL (ECMA-48), or a direction."""
    return ord(letter) < 32 or 127 <= ord(letter) < 160 or letter in DIRECTIONS


def _shown(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

"""Text of models, data and endpoints, as a terminal may be given it."""

from __future__ import annotations


def harmless(text: str) -> str:
    """With control characters shown instead of obeyed, but for line ends and tabs: no sequence of them is left, however it was cut up."""
    return "".join(letter if letter in "\n\t" or not _steers(letter) else f"\\x{ord(letter):02x}" for letter in text)


def _steers(letter: str) -> bool:
    """Of C0, C1, or DEL (ECMA-48)."""
    return ord(letter) < 32 or 127 <= ord(letter) < 160

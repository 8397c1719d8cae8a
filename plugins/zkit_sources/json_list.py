"""The items of a JSON list, one at a time and with their lines, out of a file of any size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(r'"(?:[^"\\]*+(?:\\.[^"\\]*+)*+")?|[\[\]{},\n]', re.DOTALL)
"""All that tells where an item ends: whole strings, brackets, commas; and line ends, to count.

A quote alone begins a string that the block does not end.
"""

REST_OF_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)

MAX_DEPTH = 500
CLOSES = {"]": "[", "}": "{"}
ITEM_LEVELS = ("[", "{[")
"""The open brackets around an item: a list, or a list in an object."""


class StructureError(ValueError):
    """The brackets of the file do not enclose one list of rows."""


def list_items(blocks: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The line and the text of each item; no block may end within an escape.

    Only brackets and quotes are judged here, so an item that is not valid JSON spoils no other.
    """
    scan = Scan()
    for block in blocks:
        yield from scan.feed(block)
    scan.finish()


@dataclass
class Scan:
    """Where the reading of the file stands."""

    level: str = ""
    """The brackets that are open."""
    quoted: bool = False
    line: int = 1
    num_lists: int = 0
    closed: bool = False
    pieces: list[str] = field(default_factory=list)
    """The text of the item so far, from earlier blocks."""
    item_line: int = 1

    def feed(self, block: str) -> Iterator[tuple[int, str]]:
        """The items that end in this block."""
        start = 0
        for match in TOKEN.finditer(block, self.skip_string(block)):
            mark = match.group()
            self.line += mark.count("\n")
            if mark == '"':
                self.quoted = True
                self.line += block.count("\n", match.end())
                break
            if mark not in ("[", "]", "{", "}", ","):
                continue
            if not self.level:
                self.check_blank(block[start : match.end()].rstrip("[{"))
            if self.level in ITEM_LEVELS and mark in ",]":
                yield from self.item(block[start : match.start()])
                start = match.end()
            if mark != "," and self.step(mark):
                start = match.end()
        if self.level.startswith(ITEM_LEVELS):
            self.pieces.append(block[start:])
        elif not self.level:
            self.check_blank(block[start:])

    def skip_string(self, block: str) -> int:
        """Where the string ends that an earlier block began; 0 when none did."""
        if not self.quoted:
            return 0
        rest = REST_OF_STRING.match(block)
        end = rest.end() if rest else len(block)
        self.quoted = rest is None
        self.line += block.count("\n", 0, end)
        return end

    def item(self, rest: str) -> Iterator[tuple[int, str]]:
        """The item that ends here, unless it is blank."""
        text = "".join([*self.pieces, rest])
        begun = text.lstrip()
        if begun:
            yield self.item_line + text[: len(text) - len(begun)].count("\n"), begun.rstrip()
        self.pieces, self.item_line = [], self.line

    def step(self, mark: str) -> bool:
        """Go a level in or out; whether text from here on belongs elsewhere."""
        if mark in CLOSES:
            if self.level[-1:] != CLOSES[mark]:
                raise StructureError(f"line {self.line}: `{mark}` where `{']' if self.level.endswith('[') else '}'}` should stand")
            self.level = self.level[:-1]
            self.closed = not self.level
            return self.closed
        if self.closed or len(self.level) >= MAX_DEPTH:
            reason = 'a second value; JSON lines are read with use = "jsonl"' if self.closed else "nested too deeply"
            raise StructureError(f"line {self.line}: {reason}")
        self.level += mark
        if self.level not in ITEM_LEVELS:
            return False
        self.num_lists, self.item_line = self.num_lists + 1, self.line
        if self.num_lists > 1:
            raise StructureError(f"line {self.line}: a second list; keep only the one that holds the rows")
        return True

    def check_blank(self, text: str) -> None:
        """Outside of all brackets nothing may stand."""
        if text.strip():
            raise StructureError(f"line {self.line}: {text.strip()[:20]!r} outside of the list of rows")

    def finish(self) -> None:
        """Refuse a file that is cut off, or that holds no list."""
        if self.level or self.quoted:
            raise StructureError(f"line {self.line}: the file ends before its list is closed; it may be cut off")
        if not self.num_lists:
            raise StructureError("no list of rows at the top of the file")

"""Capitals put where English has them: at sentence starts, in "I", in names; only where that is certain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from zkit_filters.vocabulary import vocabulary

SMALL = "a-zà-öø-ÿ"
ENDED = re.compile(rf"[.!?]+\s+(?=[{SMALL}])")
"""The end of a sentence, with a small letter after it."""
WORD = re.compile(rf"([{SMALL}]+(?:['’-][{SMALL}]+)*)(?=[\s,;!?…\"”)]|\.(?:\s|$)|$)")
"""A word of prose: nothing that goes on as a file name, a call, a label or a key does."""
OPENING = re.compile(r"\s*[\"“'(*]*")
LAST_TOKEN = re.compile(r"[\w.'’-]*$")
AFTER_CLOSING = tuple("\"”'’)]*`%")
YEAR = re.compile(r"1\d{3}|20\d\d")
ROMAN = re.compile(r"[ivx]+")
"""The number of a list."""
AFTER_TITLE = re.compile(r"!\s+(?:and|as|at|by|for|from|has|in|is|of|on|or|to|was|with)\b")
"""After these the mark belongs to a name: Yahoo! is, Shazam! or."""
PRONOUN = re.compile(r"i(?<![\w.'’/@#$&=+*^\\<({[-]i)(?:(?=['’](?:m|d|ve|ll|am)\b)|(?=\s+([a-z]+(?:['’]t)?)\b(?!['’\w(.=])))")
WORD_BEFORE = re.compile(r"([A-Za-z'’]+),?\s+$")
WORDS = re.compile(r"[a-z]{4,}")
BEFORE_NAME, AFTER_NAME = r"(?<![\w./@#:=_\\-])", r"(?![\w/@=_(-]|\.\w|['’][a-rt-z])"
"""A name by itself, or with "'s": no part of an address, a tag, an identifier."""
COMMON_MONTHS = ("march", "may", "august")
"""Names of months that are other words as well: with a day or a year, they are months."""
DATE = r"(?= \d{1,2}(?:st|nd|rd|th)\b| (?:19|20)\d\d\b)"
CODE_SIGN = re.compile(r"[{}<>=|\\^]|\w[(\[]|\w_\w|\$[A-Za-z({]|;\s*$|(?<!:)//|::|\+\+|[\"]\s*:\s*[\"\[\d]|^\s*#|\s--?\w", re.MULTILINE)
PROTECTED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|<(pre|code)\b.*?</\1>|\$\$.*?\$\$|https?://\S+|www\.\S+|\S+@\S+", re.DOTALL)

NUM_SENTENCES_OF_STYLE = 3
"""A reply of more sentences without one capital is written so on purpose."""

STARTS, PRONOUNS, NAMES = "sentence starts", "i", "names"


@dataclass(frozen=True, slots=True)
class Edit:
    """One letter that becomes a capital, and why."""

    place: int
    kind: str


def edits(text: str) -> list[Edit]:
    """The letters that want a capital, in no order."""
    found = [*_sentence_starts(text), *_pronouns(text), *_names(text)]
    if not found:
        return []
    spans = [match.span() for match in PROTECTED.finditer(text)]
    return [edit for edit in found if not any(start <= edit.place < end for start, end in spans)]


def apply(found: list[Edit], text: str) -> str:
    """The text with these letters as capitals."""
    letters = list(text)
    for edit in found:
        letters[edit.place] = letters[edit.place].upper()
    return "".join(letters)


def is_style(text: str) -> bool:
    """Whether it is long enough, and without capitals, to have been meant so."""
    return text.islower() and sum(1 for _ in ENDED.finditer(text)) >= NUM_SENTENCES_OF_STYLE


def _sentence_starts(text: str) -> Iterator[Edit]:
    opening = OPENING.match(text)
    if opening and _begins_prose(text, opening.end(), new_line=True):
        yield Edit(opening.end(), STARTS)
    for match in ENDED.finditer(text):
        gap = match.group()
        if _is_sentence_end(text, match.start(), gap.rstrip()) and _begins_prose(text, match.end(), new_line="\n" in gap):
            yield Edit(match.end(), STARTS)


def _is_sentence_end(text: str, place: int, marks: str) -> bool:
    """Whether the marks at `place` end a sentence: no ellipsis, abbreviation, initial or number of a list."""
    before = text[max(0, place - 24) : place]
    token = LAST_TOKEN.search(before).group().strip("'’-").lower()  # type: ignore[union-attr]  # it matches nothing, too
    if ".." in marks or not token:
        return ".." not in marks and before.endswith(AFTER_CLOSING)
    if token.isdigit():
        return marks != "." or YEAR.fullmatch(token) is not None
    if marks == "!" and AFTER_TITLE.match(text, place):
        return False
    return len(token) > 1 and "." not in token and token not in vocabulary().abbreviations and not ROMAN.fullmatch(token)


def _begins_prose(text: str, place: int, *, new_line: bool) -> bool:
    """Whether a word of a sentence begins at `place`, and not code, a label or a name that is written small."""
    match = WORD.match(text, place)
    if not match or not _is_word(match[1], text[match.end() : match.end() + 1]):
        return False
    end = text.find("\n", place)
    line = text[place : end if end >= 0 else len(text)]
    if not new_line:
        start = max(text.rfind("\n", 0, place) + 1, place - 200)
        return not CODE_SIGN.search(text[start:place] + line[:100])
    indented = text[max(0, place - 2) : place] == "  " or text[place - 1 : place] == "\t"
    return not indented and match[1] not in vocabulary().begin_code and _is_prose(line)


def _is_word(word: str, following: str) -> bool:
    """Whether it is no name that is written small, abbreviation, variable, or label of a list."""
    if following == "." and (word in vocabulary().abbreviations or ROMAN.fullmatch(word)):
        return False
    return word not in vocabulary().stay_small and (len(word) > 1 or (word in "ai" and following == " "))


def _is_prose(line: str) -> bool:
    """Whether a line reads as a sentence, or the beginning of one."""
    line = line.strip()
    ended = line.endswith((".", "!", "?", ":", '"', "”", "…", "*", ")"))
    return not CODE_SIGN.search(line) and (ended or line.count(" ") >= 3)


def _pronouns(text: str) -> Iterator[Edit]:
    for match in PRONOUN.finditer(text):
        following = match.group(1)
        if following is None or _is_pronoun(text, match.start(), following.replace("’", "'")):
            yield Edit(match.start(), PRONOUNS)


def _is_pronoun(text: str, place: int, following: str) -> bool:
    """Whether a bare "i" is the pronoun, by the words beside it."""
    before = WORD_BEFORE.search(text[max(0, place - 16) : place])
    if following in vocabulary().follow_i:
        return True
    # A third person, "until i reaches", is said of a variable.
    third_person = following.endswith("s") or following in vocabulary().never_follow_i
    return before is not None and before[1].lower() in vocabulary().precede_i and not third_person


def _names(text: str) -> Iterator[Edit]:
    if " the " not in text and " and " not in text:
        return  # perhaps another language, which writes its days and languages small
    patterns = [f"{BEFORE_NAME}{name}{AFTER_NAME}" for name in vocabulary().names.intersection(WORDS.findall(text))]
    patterns += [f"{BEFORE_NAME}{month}{DATE}" for month in COMMON_MONTHS if f"{month} " in text]
    for pattern in patterns:
        for match in re.finditer(pattern, text):
            if not CODE_SIGN.search(text[max(0, match.start() - 20) : match.end() + 20]):
                yield Edit(match.start(), NAMES)

"""Dialogues in other languages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Interval

from zephyr_kit.example import Example
from zephyr_kit.protocols import Verdict
from zkit_filters.dialogue import whole_text
from zkit_filters.memoryless import Memoryless

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
ROUNDING = 1e-6
"""May take a sum of shares so far beyond what they add up to."""
ANY_PROBABILITY = ROUNDING / 2
ALL_BUT_LETTERS = re.compile(r"[\W\d_]+")


@dataclass(frozen=True, kw_only=True)
class Language(Memoryless):
    """Keeps dialogues in some languages, as py3langid tells them from the letters of their beginning."""

    keep: tuple[str, ...] = ("en",)
    """Codes of ISO 639-1."""
    min_probability: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """That it is one of these; less is removed."""
    letters: Annotated[int, Gt(0)] = 1200
    """How much of the dialogue is read, code blocks left out."""
    min_letters: Annotated[int, Ge(0)] = 40
    """A dialogue with fewer tells too little, and is kept."""

    kind: ClassVar = "language"

    def __post_init__(self) -> None:
        if not self.keep:
            raise ValueError('`keep` is empty: name at least one language, as in keep = ["en"]')

    def look(self, example: Example) -> Verdict:
        text = self._sample(whole_text(example))
        if len(text) < self.min_letters:
            return Verdict(example)
        ranked = _identifier().rank(text)
        probability = sum(share for language, share in ranked if language in self.keep)
        return Verdict(example) if probability >= self.min_probability - ROUNDING else Verdict(None, self._reason(ranked[0][0]))

    def problems(self) -> Sequence[str]:
        known = sorted(_identifier().labels)
        return [f"`keep`: no language is called {code!r}{_hint(code, known)}" for code in self.keep if code not in known]

    def content(self) -> dict[str, Any]:
        # Its model comes with it, and may change from one version to the next.
        return {**super().content(), "py3langid": version("py3langid")}

    def miniature(self, folder: Path) -> Language:
        """Of whatever language generated rows are, all pass."""
        return replace(self, min_probability=ANY_PROBABILITY)

    def _sample(self, text: str) -> str:
        """The first letters, a space for all between them; code is in no language."""
        if "```" in text:
            text = CODE.sub(" ", text)
        # Twice as many characters hold enough letters but in rare texts, such as tables of figures.
        return ALL_BUT_LETTERS.sub(" ", text[: 2 * self.letters])[: self.letters].strip()

    def _reason(self, likeliest: str) -> str:
        return f"language {likeliest}" if likeliest not in self.keep else f"language {likeliest}, but uncertain"


def _hint(code: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(code.lower()[:2], known, n=1, cutoff=0.9)
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})"


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    """The model that comes with py3langid, read once in each process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

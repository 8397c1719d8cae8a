"""Wrong small letters mended: "Hello. how are you? i'm fine." (about 5 % of UltraChat: arXiv 2310.16944, section 4)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from zephyr_kit.example import Example, Message
from zephyr_kit.protocols import Verdict
from zkit_filters.casing import NAMES, PRONOUNS, STARTS, apply, edits, is_style
from zkit_filters.dialogue import messages, rewritten
from zkit_filters.lists import digest, packaged
from zkit_filters.memoryless import Memoryless
from zkit_filters.vocabulary import VOCABULARY_FILE

ABOUT_LETTERS = re.compile(r"capitali[sz]|(?:lower|upper)[- ]?case|capital letter|proofread|punctuation|grammatical", re.IGNORECASE)


@dataclass(frozen=True)
class Truecase(Memoryless):
    """Gives capitals to sentence starts, to "i" and to names of days, months, languages and the like.

    Left alone: code, addresses, abbreviations, identifiers; replies of several sentences without one
    capital, which are meant so; and dialogues that are about capitals, where small ones may be the point.
    """

    roles: tuple[Literal["system", "user", "assistant"], ...] = ("user", "assistant")
    """Whose messages are mended."""

    kind: ClassVar = "truecase"

    def __post_init__(self) -> None:
        if not self.roles:
            raise ValueError('`roles` is empty: name whose messages are mended, as in roles = ["user", "assistant"]')

    def look(self, example: Example) -> Verdict:
        found = {message: edits(message.content) for message in messages(example) if self._may_mend(message)}
        kinds = {edit.kind for each in found.values() for edit in each}
        if not kinds or any(ABOUT_LETTERS.search(message.content) for message in messages(example)):
            return Verdict(example)
        mended = {message: Message(message.role, apply(each, message.content)) for message, each in found.items() if each}
        reason = ", ".join(kind for kind in (STARTS, PRONOUNS, NAMES) if kind in kinds)
        return Verdict(rewritten(example, lambda message: mended.get(message, message)), reason)

    def content(self) -> dict[str, Any]:
        return {**super().content(), "words": digest(packaged(VOCABULARY_FILE))}

    def _may_mend(self, message: Message) -> bool:
        return message.role in self.roles and not (message.role == "assistant" and is_style(message.content))

"""A Modelfile for Ollama, with the chat template that was trained, in Go's language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from zephyr_kit.example import Message
from zephyr_kit.template_process import TemplateRefusal

Write = Callable[[Sequence[Message]], tuple[str, str]]
"""Writes a dialogue, and the same waiting for a reply."""
Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
QUOTES = '"""'
"""They would end the template in the middle."""
MARK = "\u2042content\u2042"


@dataclass(frozen=True)
class Turns:
    """A template that writes each turn by its role alone: most do, and Ollama's language says such ones word for word."""

    begin: str
    """What stands at the very beginning; llama.cpp puts it there, not the template."""
    unasked: str
    """What is written before a dialogue that has no system turn."""
    around: dict[Role, tuple[str, str]]
    """Before and after the content of a turn; roles that the template refuses are not among them."""
    opening: str
    """After the last turn, for a reply."""

    def written(self, dialogue: Sequence[Message]) -> str:
        """What Ollama makes of the Go template below, waiting for a reply."""
        unasked = "" if dialogue[0].role == "system" else self.unasked
        turns = "".join(self.around[message.role][0] + message.content + self.around[message.role][1] for message in dialogue)  # type: ignore[index]
        return self.begin + unasked + turns + self.opening

    def go(self) -> str:
        """In Go's template language."""
        cases = "".join(
            f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}{_text(before)}{{{{ .Content }}}}{_text(after)}'
            for number, (role, (before, after)) in enumerate(self.around.items())
        )
        unasked = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{_text(self.unasked)}{{{{ end }}}}' if self.unasked else ""
        return f"{unasked}{{{{ range .Messages }}}}{cases}{{{{ end }}}}{{{{ end }}}}{_text(self.opening)}"


def turns_of(write: Write, *, begin: str) -> Turns | None:
    """The template as turns; None for one that writes otherwise."""
    try:
        found = _turns(write, begin)
        same = all(found.written(dialogue) == write(dialogue)[1] for dialogue in _trials(found))
        return found if same and QUOTES not in found.go() else None
    except (TemplateRefusal, ValueError):
        return None


def modelfile(file: str, turns: Turns, stops: Sequence[str]) -> str:
    """The text of a Modelfile beside the GGUF file."""
    lines = [f"FROM ./{file}", f"TEMPLATE {QUOTES}{turns.go()}{QUOTES}", *(f"PARAMETER stop {_quoted(stop)}" for stop in stops)]
    return "\n".join(lines) + "\n"


def _turns(write: Write, begin: str) -> Turns:
    whole, opened = write([Message("user", MARK)])
    before, _ = _parted(whole, MARK)
    opening = opened.removeprefix(whole)
    if not opened.startswith(whole) or not before.startswith(begin):
        raise ValueError("a reply is opened in the middle")
    answered, _ = write([Message("user", "x"), Message("assistant", MARK)])
    reply = _parted(answered.removeprefix(write([Message("user", "x")])[0]), MARK)
    again, _ = write([Message("user", "x"), Message("assistant", "y"), Message("user", MARK)])
    user = _parted(again.removeprefix(write([Message("user", "x"), Message("assistant", "y")])[0]), MARK)
    around: dict[Role, tuple[str, str]] = {"user": user, "assistant": reply}
    try:
        system, _ = write([Message("system", MARK), Message("user", "x")])
        first, rest = _parted(system, MARK)
        around = {"system": (first.removeprefix(begin), rest.removesuffix(f"{user[0]}x{user[1]}")), **around}
    except TemplateRefusal:
        pass
    unasked = before.removeprefix(begin).removesuffix(user[0])
    return Turns(begin, unasked, around, opening)


def _trials(turns: Turns) -> list[list[Message]]:
    """Dialogues that would show whether a template looks at more than a turn's role."""
    said = (" a\nb ", "c", "{{ d }}", "e f", "g")
    talk = [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(said)]
    system = [Message("system", "be kind")] if "system" in turns.around else []
    return [dialogue for beginning in ([], system) for size in (1, 3, 5) if (dialogue := [*beginning, *talk[:size]])]


def _parted(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found:
        raise ValueError("a turn is left out")
    return before, after


def _text(text: str) -> str:
    """Words that Go's language takes for themselves."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

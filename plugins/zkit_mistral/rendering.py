"""Dialogues as text, and where the replies stand in it.

Works for any chat template, with or without `{% generation %}`, by rendering again: for every
reply, what the template writes when that reply is asked for must be how the whole dialogue
begins, and right after it must stand the reply, word for word, and its end token. A template
may strip blanks around a reply (Llama's and Gemma's do): then the stripped reply is what a
model reads at serving, and what it is trained to write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from zephyr_kit import ZkitError
from zephyr_kit.example import ExampleError, Message
from zephyr_kit.template_process import TemplateOverrun, TemplateWriter, writer_for
from zkit_mistral.templates import is_ours

if TYPE_CHECKING:
    from zephyr_kit.template_child import Asked

Span = tuple[int, int]

MAX_TURNS = 1000
"""The check of every reply takes time in the square of the turns; no context holds so many."""

MEND = 'set `template = "zephyr"` or a template file in [model]'
PLAIN = {"assistant": "answer", "user": "question", "system": "rule", "tool": "result"}


class TemplateError(ZkitError):
    """A chat template that cannot be trained with."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes around a reply."""

    lead: str
    """Between the generation prompt and the reply: nothing, or a blank after `[/INST]`."""
    end: str
    """After the reply, up to the control token that ends it."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer of transformers."""

    tokens: Any
    source: str = "the tokenizer"
    """Where it stands, for a message."""

    def render(self, dialogue: Sequence[Message], asked: Sequence[Asked]) -> list[str]:
        """For each that is asked: so many turns as the template writes them, with the opening of a reply if wanted."""
        turns = [{"role": message.role, "content": message.content} for message in dialogue]
        try:
            return self._writer.write(turns, asked)
        except TemplateOverrun as error:
            raise self._unusable(str(error)) from error
        except Exception as error:  # a template is somebody's program: it may raise anything
            raise ExampleError(f"the chat template refuses the dialogue: {error}") from error

    def opening(self, dialogue: Sequence[Message]) -> str:
        """A dialogue that waits for a reply."""
        return self.render(dialogue, [(len(dialogue), True)])[0]

    def replies(self, messages: Sequence[Message], *, first: int) -> tuple[str, list[Span]]:
        """The text up to the end of its last reply, and where the replies stand from message `first` on."""
        assert messages[first].role == messages[-1].role == "assistant"
        if len(messages) > MAX_TURNS:
            raise ExampleError(f"has {len(messages):,} turns, more than {MAX_TURNS:,}")
        whole, spans = self._located(messages, first)
        for message in messages:
            if message.role != "assistant" and message.content.strip() not in whole:
                raise ExampleError(f"the chat template leaves out or alters a {message.role} turn")
        return whole[: spans[-1][1]], spans

    @cached_property
    def frame(self) -> Frame:
        """What stands around the reply of a plain dialogue; raises TemplateError where none can be told."""
        question, answer = Message("user", PLAIN["user"]), Message("assistant", PLAIN["assistant"])
        try:
            before, after = self.opening([question]), self.render([question, answer], [(2, False)])[0]
        except ExampleError as error:
            raise self._unusable(f"{error} (a question and an answer)") from error
        lead, found, rest = after.removeprefix(before).partition(answer.content)
        if not after.startswith(before) or not found:
            raise self._unusable("this chat template does not write a reply, word for word, after its generation prompt")
        if control := self.control.search(lead):
            raise self._unusable(f"this chat template writes {control.group()!r} before a reply, but not in its generation prompt")
        end = self.control.search(rest)
        if end is None:
            raise self._unusable("this chat template does not end a reply with a control token, so that a model would never stop")
        return Frame(lead, rest[: end.end()])

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Tokens that a template writes, and that no text may forge; the longest first."""
        return re.compile("|".join(re.escape(token) for token in sorted(self._control, key=lambda token: (-len(token), token))))

    @property
    def control_ids(self) -> list[int]:
        """Their ids."""
        ids: list[int] = self.tokens.convert_tokens_to_ids(sorted(self._control))
        return ids

    @cached_property
    def _control(self) -> set[str]:
        added = (token.content for token in self.tokens.added_tokens_decoder.values() if token.special)
        return {*map(str, self.tokens.all_special_tokens), *added} - {""}

    @cached_property
    def _writer(self) -> TemplateWriter:
        template = self.tokens.chat_template
        return writer_for(template, self.tokens.special_tokens_map, ours=is_ours(template))

    def _located(self, messages: Sequence[Message], first: int) -> tuple[str, list[Span]]:
        frame = self.frame
        numbers = [number for number in range(first, len(messages)) if messages[number].role == "assistant"]
        # At once, for a template that is not ours is asked in another process.
        whole, *openings = self.render(messages, [(len(messages), False), *((number, True) for number in numbers)])
        spans = [_span(whole, opening, messages[number].content, frame) for number, opening in zip(numbers, openings, strict=True)]
        found = [span for span in spans if span is not None]
        if len(found) < len(spans):
            raise self._why(messages, first, continues=all(map(whole.startswith, openings)))
        return whole, found

    def _why(self, messages: Sequence[Message], first: int, *, continues: bool) -> Exception:
        """A template that fails on plain words in the same roles cannot be used; else it is this dialogue."""
        plain = [Message(message.role, f"{PLAIN.get(message.role, '')} {number}") for number, message in enumerate(messages)]
        if plain != list(messages):
            try:
                self._located(plain, first)
            except TemplateError as error:
                return error
            what = "alters a reply" if continues else "does not render the dialogue as the continuation of its beginning"
            return ExampleError(f"the chat template {what}")
        return self._unusable(
            "this chat template does not render a dialogue as the continuation of its beginning, with each reply and its end token, "
            "so that trained tokens cannot be told from others"
        )

    def _unusable(self, why: str) -> TemplateError:
        return TemplateError(f"{self.source}: {why}; {MEND}")


def _span(whole: str, opening: str, reply: str, frame: Frame) -> Span | None:
    """Where the reply stands after its opening, with its end token; None if it does not."""
    if not whole.startswith(opening):
        return None
    for text in dict.fromkeys((reply, reply.strip(), reply.lstrip(), reply.rstrip())):
        framed = frame.lead + text + frame.end
        if whole.startswith(framed, len(opening)):
            return len(opening), len(opening) + len(framed)
    return None

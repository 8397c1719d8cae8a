"""Dialogues as token ids, with the tokens that are trained marked.

Works for any chat template, with or without `{% generation %}`: an assistant turn is the
text by which the rendering grows when the turn is added after its generation prompt. That
both renderings are beginnings of the whole is checked for every turn of every example.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zephyr_kit import ZkitError
from zephyr_kit.batch import Flags, Ids, Tree
from zephyr_kit.example import TEXT, Example, ExampleError, Message
from zkit_mistral.templates import NAMED, with_system

Span = tuple[int, int]


class TemplateError(ZkitError):
    """A chat template that cannot be trained with."""


@dataclass(frozen=True)
class _Completion:
    """A prompt with one of its completions: ids, which are trained, and where the prompt's text ends."""

    ids: Ids
    trained: Flags
    boundary: int


@dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer of transformers with its chat template."""

    tokens: Any

    def encode(self, example: Example) -> Tree:
        """Token ids of the prompt and the completions; see `protocols.Tokenizer`."""
        roles = {message.role for completion in (example.prompt, *example.completions) for message in completion}
        self._refuse_control_tokens(example)
        if TEXT in roles:
            if roles != {TEXT}:
                raise ExampleError(f"mixes verbatim text with {', '.join(sorted(roles - {TEXT}))} turns")
            return _tree([self._verbatim(example.prompt, completion) for completion in example.completions])
        return _tree([self._dialogue(example.prompt, completion) for completion in example.completions])

    def fingerprint(self) -> str:
        """Digest of the tokenizer's own state and of the template."""
        state = [self.tokens.backend_tokenizer.to_str(), self.tokens.chat_template, self.tokens.special_tokens_map]
        return hashlib.blake2b(json.dumps(state, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()

    def prompt_ids(self, dialogue: Sequence[Message]) -> list[int]:
        """Ids of a dialogue that waits for the assistant's reply."""
        return self._ids(self.render(dialogue, reply=True))

    def render(self, dialogue: Sequence[Message], *, reply: bool = False) -> str:
        """The dialogue as the template writes it, with the opening of a reply if wanted."""
        turns = [{"role": message.role, "content": message.content} for message in dialogue]
        try:
            text: str = self.tokens.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply)
        except Exception as error:  # a template is somebody's program: it may raise anything
            raise ExampleError(f"the chat template refuses the dialogue: {error}") from error
        return text

    @cached_property
    def stop_ids(self) -> list[int]:
        """The tokens that end a reply: the end of sequence, and what the template ends a turn with."""
        probe = [Message("user", "a"), Message("assistant", "b")]
        rendered = self.render(probe)
        ids = self._ids(rendered[: self._end_of_turn(rendered)])
        return sorted({self.tokens.eos_token_id, ids[-1]})

    @cached_property
    def _control(self) -> list[str]:
        """Tokens that must not be forged by text."""
        return [str(token) for token in self.tokens.all_special_tokens]

    def _refuse_control_tokens(self, example: Example) -> None:
        for message in (*example.prompt, *(message for completion in example.completions for message in completion)):
            for token in self._control:
                if token in message.content:
                    raise ExampleError(f"{'the text' if message.role == TEXT else f'a {message.role} turn'} holds the control token {token!r}")

    def _dialogue(self, prompt: Sequence[Message], completion: Sequence[Message]) -> _Completion:
        messages = (*prompt, *completion)
        whole = self.render(messages)
        spans = [
            self._span(whole, messages, number)
            for number, message in enumerate(messages)
            if number >= len(prompt) and message.role == "assistant"
        ]
        return self._encode(whole[: spans[-1][1]], spans, boundary=spans[0][0])

    def _span(self, whole: str, messages: Sequence[Message], number: int) -> Span:
        """Where assistant turn `number` stands in the rendering, its end token included."""
        before = self.render(messages[:number], reply=True)
        after = self.render(messages[: number + 1])
        if not (after.startswith(before) and whole.startswith(after)):
            raise TemplateError(
                "this chat template does not render a dialogue as the continuation of its beginning, so that trained tokens cannot be told "
                'from others; set `template = "zephyr"` or a template file in [model]'
            )
        return len(before), self._end_of_turn(after)

    def _end_of_turn(self, rendered: str) -> int:
        """Where the rendering ends when what follows its last control token is left away."""
        end = len(rendered.rstrip())
        if not rendered[:end].endswith(tuple(self._control)):
            raise TemplateError("this chat template does not end an assistant turn with a control token, so that a model trained with it would never stop")
        return end

    def _verbatim(self, prompt: Sequence[Message], completion: Sequence[Message]) -> _Completion:
        bos, eos = self.tokens.bos_token or "", self.tokens.eos_token
        start = bos + "".join(message.content for message in prompt)
        text = start + "".join(message.content for message in completion) + eos
        return self._encode(text, [(len(start), len(text))], boundary=len(start))

    def _encode(self, text: str, spans: Sequence[Span], *, boundary: int) -> _Completion:
        encoded = self.tokens(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
        trained = np.zeros(len(offsets), np.bool_)
        for start, end in spans:
            trained |= (offsets[:, 1] > start) & (offsets[:, 0] < end)
        return _Completion(np.array(encoded["input_ids"], np.int32), trained, int((offsets[:, 1] <= boundary).sum()))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokens(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def open_tokenizer(place: str, *, template: str, system: str | None = None, revision: str | None = None) -> ChatTokenizer:
    """The tokenizer of a folder or a repository, with the template that the preset names."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(place, revision=revision)
    if not tokens.is_fast:
        raise ZkitError(f"{place}: the tokenizer has no fast version, which is needed to tell trained tokens from others")
    if tokens.eos_token is None:
        raise ZkitError(f"{place}: the tokenizer has no end-of-sequence token")
    tokens.chat_template = _template(tokens.chat_template, template, system)
    return ChatTokenizer(tokens)


def _template(own: str | None, wanted: str, system: str | None) -> str:
    if wanted == "auto":
        chosen = own or NAMED["zephyr"]
    elif wanted in NAMED:
        chosen = NAMED[wanted]
    else:
        chosen = Path(wanted).read_text("utf-8")
    return chosen if system is None else with_system(chosen, system)


def _tree(completions: Sequence[_Completion]) -> Tree:
    """Split off the prompt: what all completions begin with, up to where its text ends."""
    size = min(completion.boundary for completion in completions)
    first = completions[0].ids
    for other in completions[1:]:
        same = first[:size] == other.ids[:size]
        size = size if same.all() else int(np.argmin(same))
    return Tree(first[:size], tuple(c.ids[size:] for c in completions), tuple(c.trained[size:] for c in completions))

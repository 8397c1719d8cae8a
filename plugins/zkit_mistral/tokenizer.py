"""Dialogues as token ids, with the tokens that are trained marked."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from zephyr_kit import ZkitError
from zephyr_kit.batch import Flags, Ids, Tree
from zephyr_kit.example import TEXT, Example, ExampleError, Message
from zkit_mistral.opening import Origin
from zkit_mistral.rendering import MEND, ChatTemplate, Span, TemplateError
from zkit_mistral.templates import NAMED, with_system

TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer of transformers with its chat template."""

    tokens: Any
    source: str = "the tokenizer"
    """Where the template stands, for a message."""

    def encode(self, example: Example) -> Tree:
        """Token ids of the prompt and the completions; see `protocols.Tokenizer`.

        The prompt's are those of `prompt_ids`, so that a reply is trained from where it will be asked for.
        """
        self._refuse_control_tokens(itertools.chain(example.prompt, *example.completions))
        opening, rows = self._written(example)
        prompt = self._ids(opening)
        completions = [self._completion(prompt, text, spans) for text, spans in rows]
        return Tree(np.array(prompt, np.int32), tuple(ids for ids, _ in completions), tuple(trained for _, trained in completions))

    def fingerprint(self) -> str:
        """Digest of the tokenizer's own state and of the template."""
        state = [self.tokens.backend_tokenizer.to_str(), self.tokens.chat_template, self.tokens.special_tokens_map]
        return hashlib.blake2b(json.dumps(state, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()

    @property
    def template_digest(self) -> str:
        """Stands for the chat template in the record of a run."""
        return hashlib.sha256(self.tokens.chat_template.encode("utf-8")).hexdigest()

    def render(self, example: Example) -> list[str]:
        """The text that `encode` makes ids of, for each completion."""
        return [text for text, _ in self._written(example)[1]]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; see `protocols.Tokenizer`."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(self.tokens.backend_tokenizer, int(token)) or "" for token in ids]

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a reply."""
        return frozenset(self.stop_ids)

    def prompt_ids(self, dialogue: Sequence[Message]) -> list[int]:
        """Ids of a dialogue that waits for the assistant's reply, or of text to go on with; raises `ExampleError` as `encode` does."""
        self._refuse_control_tokens(dialogue)
        is_text = _is_verbatim(Example(tuple(dialogue), ()))
        text = "".join(message.content for message in dialogue) if is_text else self.template.opening(dialogue)
        ids = self._ids(text)
        self._refuse_disguised_tokens(ids, text)
        # Text, with what the tokenizer puts before any by itself: so everybody else asks models to go on with it.
        return list(self.tokens.backend_tokenizer.encode(text).ids) if is_text else ids

    @cached_property
    def template(self) -> ChatTemplate:
        """How dialogues are written."""
        return ChatTemplate(self.tokens, self.source)

    @cached_property
    def stop_ids(self) -> list[int]:
        """The tokens that end a reply: the end of sequence, and what the template ends a turn with."""
        return sorted({self.tokens.eos_token_id, self._ids(self.template.frame.end)[-1]})

    def _refuse_control_tokens(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if forged := self.template.control.search(message.content):
                where = "the text" if message.role == TEXT else f"{'an' if message.role == 'assistant' else 'a'} {message.role} turn"
                raise ExampleError(f"{where} holds the control token {forged.group()!r}")

    def _refuse_disguised_tokens(self, ids: Sequence[int], text: str) -> None:
        """Full-width letters, say, that a tokenizer makes plain ones of before it looks for control tokens."""
        if sum(map(self._control_ids.__contains__, ids)) > len(self.template.control.findall(text)):
            raise ExampleError("holds letters that the tokenizer reads as a control token")

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.template.control_ids) - {self.tokens.unk_token_id}

    def _written(self, example: Example) -> tuple[str, list[tuple[str, list[Span]]]]:
        """The text of the prompt; and for each completion the whole text, and where its replies stand in it."""
        if _is_verbatim(example):
            return self._verbatim(example)
        _ = self.template.frame  # what is wrong with the template on plain words is wrong with no row
        try:
            return self._dialogues(example)
        except TemplateError as error:
            raise TemplateError(f"{error} (first met at {example.origin})" if example.origin else str(error)) from error

    def _dialogues(self, example: Example) -> tuple[str, list[tuple[str, list[Span]]]]:
        size = len(example.prompt)
        rows = [self.template.replies((*example.prompt, *completion), first=size) for completion in example.completions]
        text, spans = rows[0]
        return text[: spans[0][0]], rows

    def _verbatim(self, example: Example) -> tuple[str, list[tuple[str, list[Span]]]]:
        start = (self.tokens.bos_token or "") + "".join(message.content for message in example.prompt)
        texts = [start + "".join(message.content for message in completion) + self.tokens.eos_token for completion in example.completions]
        return start, [(text, [(len(start), len(text))]) for text in texts]

    def _completion(self, prompt: Sequence[int], text: str, spans: Sequence[Span]) -> tuple[Ids, Flags]:
        """The ids that follow the prompt's, and which of them are trained."""
        encoding = self._encoding(text)
        ids, size = encoding.ids, len(prompt)
        self._refuse_disguised_tokens(ids, text)
        firsts = [_token_at(encoding, start) for start, _ in spans]
        if ids[:size] != prompt or firsts[0] != size or None in firsts:
            return self._in_pieces(prompt, ids, text, spans)
        trained = np.zeros(len(ids), np.bool_)
        for first, (_, end) in zip(firsts, spans, strict=True):
            trained[first : encoding.char_to_token(end - 1) + 1] = True
        return np.array(self._known(ids)[size:], np.int32), trained[size:]

    def _in_pieces(self, prompt: Sequence[int], joined: Sequence[int], text: str, spans: Sequence[Span]) -> tuple[Ids, Flags]:
        """The same where a token would reach across the beginning of a reply: cut there, as it is when the model writes it.

        Each piece is encoded after a control token, which no token reaches across, and which
        keeps most tokenizers from putting a blank before it.
        """
        eos = self.tokens.eos_token
        ids: list[int] = []
        trained: list[bool] = []
        stops = [*(start for start, _ in spans[1:]), len(text)]
        for (start, end), stop in zip(spans, stops, strict=True):
            piece = self._encoding(eos + text[start:stop])
            num_trained = piece.char_to_token(len(eos) + end - start - 1)
            ids += piece.ids[1:]
            trained += [True] * num_trained + [False] * (len(piece.ids) - 1 - num_trained)
        if self._text([*prompt, *ids]) != self._text(joined):
            raise ExampleError("the tokenizer cannot part a reply from what the chat template writes before it")
        return np.array(self._known(ids), np.int32), np.array(trained, np.bool_)

    def _known(self, ids: list[int]) -> list[int]:
        unknown = self.tokens.unk_token_id
        if unknown is not None and unknown in ids:
            raise ExampleError("holds a character that the tokenizer does not know")
        return ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._encoding(text).ids
        return ids

    def _encoding(self, text: str) -> Any:
        return self.tokens.backend_tokenizer.encode(text, add_special_tokens=False)

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokens.backend_tokenizer.decode(ids, skip_special_tokens=False)
        return text


def open_tokenizer(origin: Origin | str, *, template: str, system: str | None = None) -> ChatTokenizer:
    """The tokenizer of a folder or a repository, with the template that the preset names.

    A folder's is read once while its files stay as they are, for a run asks for it again and again.
    """
    origin = Origin(origin) if isinstance(origin, str) else origin
    folder = Path(origin.place)
    if not folder.is_dir():
        return _opened(origin, template, system)
    files = (file for file in (*folder.glob("*"), *folder.glob("*/*"), Path(template)) if file.is_file())
    return _opened_before(origin, template, system, tuple((file, _state(file)) for file in sorted(files)))


@lru_cache(maxsize=1)
def _opened_before(origin: Origin, template: str, system: str | None, _files: tuple[tuple[Path, tuple[int, ...]], ...]) -> ChatTokenizer:
    return _opened(origin, template, system)


def _state(file: Path) -> tuple[int, ...]:
    """Changes whenever the file does."""
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _opened(origin: Origin, template: str, system: str | None) -> ChatTokenizer:
    place, tokens = origin.place, origin.tokens()
    if not tokens.is_fast:
        raise ZkitError(f"{place}: the tokenizer has no fast version, which is needed to tell trained tokens from others")
    if tokens.eos_token is None:
        raise ZkitError(f"{place}: the tokenizer has no end-of-sequence token")
    # A tokenizer may have been saved with either; to cut and to pad is not its business here.
    tokens.backend_tokenizer.no_truncation()
    tokens.backend_tokenizer.no_padding()
    source, written = _template(tokens.chat_template, template, place)
    tokens.chat_template = written if system is None else with_system(written, system)
    return ChatTokenizer(tokens, source)


def _template(own: str | dict[str, str] | None, wanted: str, place: str) -> tuple[str, str]:
    """Where the template stands, and the template."""
    if wanted in NAMED:
        return place, NAMED[wanted]
    if wanted != "auto":
        return wanted, _read(Path(wanted))
    file = Path(place) / TEMPLATE_FILE
    source, own = str(file) if file.exists() else place, own.get("default") if isinstance(own, dict) else own
    if own is not None and not own.strip():
        raise TemplateError(f"{source}: the chat template is empty; {MEND}")
    return source, own or NAMED["zephyr"]


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise TemplateError(f"{file}: cannot be read: {error}; {MEND}") from error


def _is_verbatim(example: Example) -> bool:
    roles = {message.role for messages in (example.prompt, *example.completions) for message in messages}
    if TEXT in roles and len(roles) > 1:
        raise ExampleError(f"mixes verbatim text with {', '.join(sorted(roles - {TEXT}))} turns")
    return TEXT in roles


def _token_at(encoding: Any, start: int) -> int | None:
    """The token that begins at this character; None if one reaches across."""
    number: int | None = encoding.char_to_token(start)
    return number if number is not None and encoding.token_to_chars(number)[0] == start else None

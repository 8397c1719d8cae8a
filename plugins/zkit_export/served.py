"""An exported folder as a server reads it: its own template, its own tokens, its own weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer as Encoder
from torch import Tensor

from zephyr_kit import ZkitError
from zephyr_kit.batch import Tree
from zephyr_kit.devices import give_back_memory
from zephyr_kit.example import Example, Message
from zephyr_kit.protocols import Tokenizer
from zephyr_kit.template_process import TemplateRefusal, writer_for
from zkit_export.probes import Probes, row
from zkit_export.refusal import ParityError

if TYPE_CHECKING:
    from zkit_export.parity import After

TEMPLATE_FILE, TOKENIZER_FILE, SETTINGS_FILE = "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class Served:
    """What a server knows of a model's language."""

    folder: Path

    @property
    def template(self) -> str:
        """The chat template."""
        file = self.folder / TEMPLATE_FILE
        if file.exists():
            return file.read_text("utf-8")
        inside = self.settings.get("chat_template")
        if not isinstance(inside, str):
            raise ZkitError(f"{self.folder}: has no chat template")
        return inside

    @property
    def settings(self) -> Mapping[str, Any]:
        """The tokenizer's settings."""
        found: dict[str, Any] = json.loads((self.folder / SETTINGS_FILE).read_text("utf-8"))
        return found

    @property
    def special(self) -> dict[str, str]:
        """Its special tokens, by name."""
        named = {name: self.settings.get(name) for name in SPECIAL}
        return {name: value["content"] if isinstance(value, Mapping) else value for name, value in named.items() if value}

    @property
    def begins(self) -> bool:
        """Whether the template begins with the token that begins a sequence."""
        bos = self.special.get("bos_token")
        return bos is not None and self.writer()([Message("user", "a")])[1].startswith(bos)

    def writer(self) -> Callable[[Sequence[Message]], tuple[str, str]]:
        """Writes a dialogue, and the same waiting for a reply."""
        writer = writer_for(self.template, self.special, ours=False)

        def write(dialogue: Sequence[Message]) -> tuple[str, str]:
            turns = [{"role": message.role, "content": message.content} for message in dialogue]
            whole, opened = writer.write(turns, [(len(turns), False), (len(turns), True)])
            return whole, opened

        return write

    def encoder(self) -> Encoder:
        """Text to ids."""
        encoder: Encoder = Encoder.from_file(str(self.folder / TOKENIZER_FILE))
        encoder.no_truncation()
        encoder.no_padding()
        return encoder

    def check(self, tokenizer: Tokenizer, probes: Probes) -> None:
        """Raise ParityError unless template and tokens are those that were trained with."""
        write, encoder = self.writer(), self.encoder()
        for example in probes.examples:
            try:
                (whole, _), (_, opened) = write((*example.prompt, *example.completions[0])), write(example.prompt)
            except TemplateRefusal as error:
                raise ParityError(f"the exported template refuses a dialogue that was trained with: {error}") from error
            trained = tokenizer.render(example)[0]
            if not whole.startswith(trained):
                raise ParityError(f"the exported template writes other text than was trained: {_difference(trained, whole)}")
            if encoder.encode(opened, add_special_tokens=False).ids != tokenizer.encode(_asked(example)).prompt.tolist():
                raise ParityError(f"the exported tokenizer makes other tokens of a prompt than were trained: {opened[:200]!r}")


@contextmanager
def opened(folder: Path, device: torch.device, *, gguf: str | None = None) -> Iterator[After]:
    """The exported weights as transformers reads them, without any of our code."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    give_back_memory()
    how: dict[str, Any] = {"dtype": "auto", "use_safetensors": True} if gguf is None else {"gguf_file": gguf, "dtype": torch.float32}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": device}, trust_remote_code=False, **how).eval()
    except (ValueError, OSError, ImportError, RuntimeError, AssertionError) as error:
        what = "the exported weights" if gguf is None else gguf
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise ParityError(f"transformers cannot read {what}, which cannot be compared then: {cause}") from error
    yield logits_of(model)


def logits_of(model: Any) -> Callable[[Tree], Tensor]:
    """What a model of transformers says in the place of each target, (M, V), by its own forward pass."""

    def after(tree: Tree) -> Tensor:
        batch = row(tree)
        with torch.inference_mode():
            logits_TV: Tensor = model(batch.tokens_T[None].to(model.device), use_cache=False).logits[0]
        return logits_TV[batch.source_M.to(logits_TV.device)].float().log_softmax(-1)

    return after


def _asked(example: Example) -> Example:
    return Example(example.prompt, ((example.completions[0][0],),), origin=example.origin)


def _difference(one: str, other: str) -> str:
    at = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{one[max(0, at - 20) : at + 40]!r} became {other[max(0, at - 20) : at + 40]!r}"

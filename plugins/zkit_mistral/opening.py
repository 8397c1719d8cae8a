"""What transformers reads of a folder or a repository, after it was seen to that it can do no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.remote_code import KEY, check_code, code_arguments, qualified, read_remote_code
from zephyr_kit.weights import admit

UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
PANIC = "PanicException"
"""What the tokenizers library raises where Rust panics, not an `Exception`; all else that it raises is a plain one."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model is."""

    place: str
    """A folder, or the name of a repository."""
    revision: str | None = None
    remote_code: str | None = None

    def config(self, **how: Any) -> Any:
        """The configuration."""
        from transformers import AutoConfig

        with self._seen_to(fetch=not how.get("local_files_only", False)):
            return AutoConfig.from_pretrained(self.place, revision=self.revision, **code_arguments(self.remote_code), **how)

    def tokens(self) -> Any:
        """The tokenizer."""
        from transformers import AutoTokenizer

        with self._seen_to():
            tokens = AutoTokenizer.from_pretrained(self.place, revision=self.revision, **code_arguments(self.remote_code))
        code = read_remote_code(self.remote_code)
        if code is not None and KEY in tokens.init_kwargs:
            tokens.init_kwargs[KEY] = qualified(tokens.init_kwargs[KEY], code.repository)
            type(tokens)._auto_class = None
        return tokens

    def model(self, **how: Any) -> Any:
        """The causal language model, from safetensors."""
        from transformers import AutoModelForCausalLM

        with self._seen_to():
            model = AutoModelForCausalLM.from_pretrained(
                self.place, revision=self.revision, use_safetensors=True, **code_arguments(self.remote_code), **how
            )
        self._leave_code_where_it_is(model)
        return model

    def read_by(self, reader: Callable[..., Any], **how: Any) -> Any:
        """What another library makes of it."""
        with self._seen_to():
            return reader(self.place, revision=self.revision, use_safetensors=True, **how)

    def _leave_code_where_it_is(self, model: Any) -> None:
        """Else it would be copied into whatever is saved, where no commit says which it is."""
        code = read_remote_code(self.remote_code)
        if code is not None and hasattr(model.config, KEY):
            model.config.auto_map = qualified(model.config.auto_map, code.repository)
            type(model)._auto_class = type(model.config)._auto_class = None

    @contextmanager
    def _seen_to(self, *, fetch: bool = True) -> Iterator[None]:
        """Refuse what must not be read, before it is; and tell in a line what cannot be."""
        check_code(self.place, admit(self.place, self.revision, fetch=fetch), self.remote_code)
        try:
            yield
        except (ImportError, ZkitError, MemoryError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if not isinstance(error, UNREADABLE) and type(error) is not Exception and type(error).__name__ != PANIC:
                raise
            raise ZkitError(f"{self.place}: {_told(error)}") from error


def _told(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "brings code of its own, which is not run; to run it, name its repository and commit: remote_code = \"owner/name@COMMIT\""
    lines = str(error).strip().splitlines()
    return f"cannot be read ({type(error).__name__}: {lines[0] if lines else ''})"

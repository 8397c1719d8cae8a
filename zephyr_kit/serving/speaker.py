"""A model that speaks, one reply at a time, word by word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock

from zephyr_kit.example import Example, ExampleError, Message
from zephyr_kit.protocols import Policy, Reply, Request, Tokenizer


@dataclass(frozen=True, slots=True)
class Spoken:
    """A reply, as far as it was wanted."""

    text: str
    ending: str
    """`stop`, or `length` where the limit of tokens came first."""
    num_read: int
    num_written: int


class _Enough(Exception):
    """A stop sequence was met."""


@dataclass(frozen=True)
class Speaker:
    """A loaded model that several may talk to, one after another."""

    policy: Policy
    tokenizer: Tokenizer
    lock: Lock = field(default_factory=Lock)

    def speak(self, request: Request, stops: Sequence[str] = (), *, on_text: Callable[[str], None] | None = None) -> Spoken:
        """Write the reply, `on_text` told it piece by piece, but nothing of a stop sequence. Raises ZkitError, and what that raises."""
        held = _Held(tuple(stops), on_text or _nobody)
        with self.lock:
            try:
                ((_, reply),) = self.policy.generate([request], on_text=held.add)
            except _Enough:
                reply = None
        held.end()
        text = held.said.strip()
        ending = "stop" if reply is None or reply.finished or held.stopped else "length"
        return Spoken(text, ending, *self._counts(request, text, None if held.stopped else reply))

    def _counts(self, request: Request, text: str, reply: Reply | None) -> tuple[int, int]:
        """Tokens read and written: as the model counts them, or those of the text."""
        if reply is not None and reply.num_read is not None and reply.num_written is not None:
            return reply.num_read, reply.num_written
        try:
            tree = self.tokenizer.encode(Example(request.dialogue, ((Message("assistant", text),),)))
        except ExampleError:  # what a model writes may be what no row of data may hold
            return 0, 0
        return len(tree.prompt), len(tree.completions[0])


class _Held:
    """Text on its way out; what may be the beginning of a stop sequence is held back."""

    def __init__(self, stops: tuple[str, ...], tell: Callable[[str], None]) -> None:
        self.said, self.stopped = "", False
        self._stops, self._tell, self._waiting = stops, tell, ""

    def add(self, text: str) -> None:
        """More of the reply; raises `_Enough` at a stop sequence."""
        self._waiting += text
        found = [place for stop in self._stops if (place := self._waiting.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._waiting = self._waiting[: min(found)]
            raise _Enough
        keep = max((size for stop in self._stops for size in range(1, len(stop)) if self._waiting.endswith(stop[:size])), default=0)
        self._pass_on(len(self._waiting) - keep)

    def end(self) -> None:
        """All that is left."""
        self._pass_on(len(self._waiting))

    def _pass_on(self, count: int) -> None:
        text, self._waiting = self._waiting[:count], self._waiting[count:]
        self.said += text
        if text:
            self._tell(text)


def _nobody(text: str) -> None:
    """Nobody listens before the end."""

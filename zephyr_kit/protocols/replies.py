"""Who writes replies, and who judges them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from zephyr_kit.answers import Answers
    from zephyr_kit.example import Message
    from zephyr_kit.protocols.model import Policy


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to write a reply. `temperature` 0 takes the likeliest token."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    """Only so many of the likeliest tokens; 0 for no limit."""


@dataclass(frozen=True, slots=True)
class Request:
    """A reply that is wanted to a dialogue, and how it is to be written."""

    dialogue: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Reply:
    """What somebody wrote."""

    text: str
    finished: bool = True
    """Whether it came to its own end, and not to the limit of tokens."""
    cost: float | None = 0.0
    """US dollars; None where no price is known."""
    num_read: int | None = field(default=None, compare=False)
    """Tokens of the prompt, where that is known."""
    num_written: int | None = field(default=None, compare=False)
    """Tokens of the reply, with the one that ends it."""

    @property
    def shown(self) -> str:
        """The text for a reader, who sees where it was cut."""
        return self.text if self.finished else f"{self.text.rstrip()} …"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no reply, or no judgement, after all that could be tried."""

    reason: str
    """In words that can be counted, particulars in brackets at the end."""
    cost: float | None = 0.0
    """US dollars, for what was tried."""


@dataclass(frozen=True, slots=True)
class Case:
    """Replies to one dialogue that are to be judged."""

    dialogue: tuple[Message, ...]
    replies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge thinks of the replies of a case; higher is better."""

    scores: tuple[float, ...]
    """One for each reply, overall."""
    aspects: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """More of them, by what they are about; None where an aspect does not apply."""
    remarks: tuple[str, ...] = ()
    """What it said of each reply."""
    cost: float | None = 0.0
    """US dollars; None where no price is known."""


@dataclass(frozen=True)
class Bench:
    """What completers and judges are given to work with."""

    device: torch.device
    answers: Answers
    """Where answers that were paid for are kept by content."""
    own: Callable[[], AbstractContextManager[Policy]] | None = None
    """Loads the model that the stages before have made, for as long as the context lasts."""
    own_key: str = ""
    """Stands for the content of that model."""


class Completer(Protocol):
    """Writes replies to dialogues. The engine keeps each one by content, and asks but for those it has not."""

    def complete(self, requests: Sequence[Request], bench: Bench) -> Iterator[tuple[int, Reply | Failure]]:
        """A reply to each request, under its number, in any order, as soon as it is there."""
        ...

    def fingerprint(self, bench: Bench) -> Mapping[str, Any]:
        """JSON values that change whenever its replies would: who writes, but for the request."""
        ...

    def problems(self, device: torch.device) -> Sequence[str]:
        """What stands in the way, found within three seconds; empty if nothing."""
        ...

    def miniature(self, folder: Path) -> Completer:
        """The same offline and small, for `--smoke`."""
        ...


class Judge(Protocol):
    """Scores replies to dialogues. The engine shuffles the replies of a case, and keeps each judgement by content."""

    def judge(self, cases: Sequence[Case], bench: Bench) -> Iterator[tuple[int, Judgement | Failure]]:
        """A judgement of each case, under its number, in any order, as soon as it is there."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """JSON values that change whenever its judgements would: who judges, by which rubric."""
        ...

    def problems(self, device: torch.device) -> Sequence[str]:
        """What stands in the way, found within three seconds; empty if nothing."""
        ...

    def miniature(self, folder: Path) -> Judge:
        """The same offline and small, for `--smoke`."""
        ...

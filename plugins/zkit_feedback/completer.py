"""The completer behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.protocols import Bench, Failure, Reply, Request
from zkit_feedback.endpoint import Endpoint

if TYPE_CHECKING:
    import torch

    from zkit_feedback.client import Answer
    from zkit_feedback.scripted import ScriptedCompleter


@dataclass(frozen=True, kw_only=True)
class EndpointCompleter(Endpoint):
    """Replies of a model behind an OpenAI-compatible endpoint."""

    def complete(self, requests: Sequence[Request], bench: Bench) -> Iterator[tuple[int, Reply | Failure]]:
        """A reply to each request, under its number, as soon as it is there; each is kept, and equal ones are asked once."""
        from zkit_feedback.client import Question, ask_all

        def question(number: int) -> Question:
            request = requests[number]
            return Question(self.body(request.dialogue, request.sampling), draw=self.draw(request.sampling))

        for number, answer in ask_all(self, len(requests), question, bench.answers):
            yield number, answer if isinstance(answer, Failure) else self._reply(answer)

    def fingerprint(self, bench: Bench) -> Mapping[str, Any]:
        return self.named()

    def problems(self, device: torch.device) -> Sequence[str]:
        return self.reach_problems()

    def miniature(self, folder: Path) -> ScriptedCompleter:
        from zkit_feedback.scripted import ScriptedCompleter

        return ScriptedCompleter(instead_of=self.model)

    def _reply(self, answer: Answer) -> Reply:
        cost = self.cost(answer.num_read, answer.num_written)
        return Reply(answer.text.strip(), finished=answer.ending != "length", cost=cost)

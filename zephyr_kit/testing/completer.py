"""Laws of completers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from zephyr_kit.answers import Answers
from zephyr_kit.example import Message
from zephyr_kit.protocols import Bench, Completer, Failure, Reply, Request, Sampling

DIALOGUES = (
    (Message("user", "What is a lighthouse for?"),),
    (Message("user", "Name a fish."), Message("assistant", "A cod."), Message("user", "And another one?")),
)


class CompleterLaws:
    """What the stages that gather rows rely on."""

    completer: Completer
    device: ClassVar[torch.device] = torch.device("cpu")
    max_new_tokens: ClassVar[int] = 12

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        """A bench without a model of its own, and nothing paid for yet; override it for a completer that needs one."""
        with closing(Answers(tmp_path / "answers")) as answers:
            yield Bench(self.device, answers)

    def test_answers_every_request_once(self, bench: Bench) -> None:
        """Under its number, whatever the order."""
        requests = self._requests()
        found = list(self.completer.complete(requests, bench))
        assert sorted(number for number, _ in found) == list(range(len(requests)))
        assert all(isinstance(reply, Reply) for _, reply in found), found

    def test_the_same_request_gets_the_same_reply(self, bench: Bench) -> None:
        """Whatever else is asked beside it: a reply is kept under its request alone."""
        requests = self._requests()
        together = self._texts(self.completer, requests, bench)
        assert self._texts(self.completer, [*requests[2:], *requests[:2]], bench) == together[2:] + together[:2]
        assert [self._texts(self.completer, [request], bench)[0] for request in requests] == together

    def test_answers_nothing_when_nothing_is_asked(self, bench: Bench) -> None:
        """A stage that knows all replies asks for none."""
        assert not list(self.completer.complete([], bench))

    def test_has_a_fingerprint_that_stays(self, bench: Bench) -> None:
        """JSON values; replies are kept under it."""
        found = dict(self.completer.fingerprint(bench))
        assert json.loads(json.dumps(found)) == found == dict(copy.deepcopy(self.completer).fingerprint(bench))

    def test_has_no_problems_when_it_can_write(self) -> None:
        """The preflight may not cry wolf."""
        assert not self.completer.problems(self.device)

    def test_miniature_writes_too(self, bench: Bench, tmp_path: Path) -> None:
        """`--smoke` runs it, offline."""
        requests = self._requests()
        assert len(self._texts(self.completer.miniature(tmp_path), requests, bench)) == len(requests)

    def _requests(self) -> list[Request]:
        ways = ((0.0, 1.0, 0), (1.0, 0.9, 1), (0.7, 1.0, 2))
        samplings = [Sampling(self.max_new_tokens, temperature, top_p, seed) for temperature, top_p, seed in ways]
        return [Request(dialogue, sampling) for dialogue in DIALOGUES for sampling in samplings]

    def _texts(self, completer: Completer, requests: Sequence[Request], bench: Bench) -> list[str]:
        found = dict(completer.complete(requests, bench))
        replies = [found[number] for number in range(len(requests))]
        assert not any(isinstance(reply, Failure) for reply in replies), replies
        return [reply.text for reply in replies if isinstance(reply, Reply)]

"""Laws of completers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar

import torch

from zephyr_kit.answers import Answers
from zephyr_kit.example import Message
from zephyr_kit.protocols import Bench, Completer, Failure, Reply, Request, Sampling
from zephyr_kit.testing.offer import OfferLaws

DIALOGUES = (
    (Message("user", "What is a lighthouse for?"),),
    (Message("user", "Name a fish."), Message("assistant", "A cod."), Message("user", "And another one?")),
)


class CompleterLaws(OfferLaws):
    """What the stages that gather rows rely on."""

    subject = "completer"
    title = "Completers"
    completer: Completer
    device: ClassVar[torch.device] = torch.device("cpu")
    max_new_tokens: ClassVar[int] = 12

    @contextmanager
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        """A bench without a model of its own, and nothing paid for yet; override it for a completer that needs one."""
        with closing(Answers(tmp_path / "answers")) as answers:
            yield Bench(self.device, answers)

    def test_answers_every_request_once(self, tmp_path: Path) -> None:
        """Every request is answered once, under its number, in any order.

        Without it, a prompt goes without its reply, or gets that of another.
        """
        requests = self._requests()
        found = self._found(self.completer, requests, tmp_path)
        assert sorted(number for number, _ in found) == list(range(len(requests)))
        assert all(isinstance(reply, Reply) for _, reply in found), found

    def test_the_same_request_gets_the_same_reply(self, tmp_path: Path) -> None:
        """The same request gets the same reply, whatever else is asked beside it.

        Without it, what is kept, under its request alone, is not what would be written now.
        """
        requests = self._requests()
        together = self._texts(self.completer, requests, tmp_path)
        assert self._texts(self.completer, [*requests[2:], *requests[:2]], tmp_path) == together[2:] + together[:2]
        assert [self._texts(self.completer, [request], tmp_path)[0] for request in requests] == together

    def test_answers_nothing_when_nothing_is_asked(self, tmp_path: Path) -> None:
        """It writes nothing when nothing is asked.

        Without it, a stage that knows all replies already fails, or pays.
        """
        assert not self._found(self.completer, [], tmp_path)

    def test_has_a_fingerprint_that_stays(self, tmp_path: Path) -> None:
        """Its fingerprint is made of JSON values, and stays.

        Without it, replies that were paid for are not found again.
        """
        with self.bench(tmp_path) as bench:
            found = dict(self.completer.fingerprint(bench))
            assert json.loads(json.dumps(found)) == found == dict(copy.deepcopy(self.completer).fingerprint(bench))

    def test_has_no_problems_when_it_can_write(self) -> None:
        """`problems` is empty when it can write.

        Without it, the preflight refuses presets that would have run.
        """
        assert not self.completer.problems(self.device), self.completer.problems(self.device)

    def test_miniature_writes_too(self, tmp_path: Path) -> None:
        """Its miniature writes too, offline.

        Without it, `--smoke` cannot try the stage.
        """
        requests = self._requests()
        assert len(self._texts(self.completer.miniature(tmp_path), requests, tmp_path)) == len(requests)

    def _requests(self) -> list[Request]:
        ways = ((0.0, 1.0, 0), (1.0, 0.9, 1), (0.7, 1.0, 2))
        samplings = [Sampling(self.max_new_tokens, temperature, top_p, seed) for temperature, top_p, seed in ways]
        return [Request(dialogue, sampling) for dialogue in DIALOGUES for sampling in samplings]

    def _found(self, completer: Completer, requests: Sequence[Request], tmp_path: Path) -> list[tuple[int, Reply | Failure]]:
        with self.bench(tmp_path) as bench:
            return list(completer.complete(requests, bench))

    def _texts(self, completer: Completer, requests: Sequence[Request], tmp_path: Path) -> list[str]:
        found = dict(self._found(completer, requests, tmp_path))
        replies = [found[number] for number in range(len(requests))]
        assert not any(isinstance(reply, Failure) for reply in replies), replies
        return [reply.text for reply in replies if isinstance(reply, Reply)]

"""A backend's models, as its laws look at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.example import Example, Message
from zephyr_kit.protocols import Backend, Policy, Request, Sampling, Scores, Start
from zephyr_kit.testing.offer import OfferLaws
from zephyr_kit.testing.strategies import examples, for_all


class LoadedLaws(OfferLaws):
    """What laws of models need."""

    backend: Backend
    device: ClassVar[torch.device] = torch.device("cpu")
    tolerance: ClassVar[float] = 2e-4
    cases: ClassVar[int] = 5
    """Draws of further dialogues on which laws about any dialogue are tried."""
    dialogue: ClassVar[tuple[Message, ...]] = (Message("user", "a b c?"),)
    replies: ClassVar[tuple[str, ...]] = ("d e f.", "g h.", "i j k l m n.")

    def _policy(self, start: Start = Start(seed=1)) -> Policy:  # noqa: B008  frozen
        policy = self.backend.load(self.device, start=start, train=True)
        policy.module.eval()
        return policy

    def _trees(self) -> list[Tree]:
        completions = tuple((Message("assistant", reply),) for reply in self.replies)
        longer = (*self.dialogue, Message("assistant", "o p."), Message("user", "q?"))
        return self._encoded([Example(prompt, completions) for prompt in (self.dialogue, longer)])

    def _encoded(self, some: Sequence[Example]) -> list[Tree]:
        return [*map(self.backend.tokenizer(Start()).encode, some)]

    def _for_any_dialogues(self, law: Callable[[list[Tree]], None], cases: int | None = None) -> None:
        """Its own, then others with one completion to three."""
        law(self._trees())
        some = st.lists(st.integers(1, 3).flatmap(examples), min_size=1, max_size=4)
        for_all(some, lambda drawn: law(self._encoded(drawn)), cases=cases or self.cases, shrink=cases is not None)

    def _requests(self) -> list[Request]:
        longer = (*self.dialogue, Message("assistant", "o p."), Message("user", "q?"))
        ways = [Sampling(5), Sampling(9, temperature=1.0, seed=1), Sampling(2, temperature=0.7, top_p=0.9, seed=2)]
        return [Request(dialogue, sampling) for dialogue in (self.dialogue, longer) for sampling in ways]

    @property
    def _shares(self) -> bool:
        return bool(getattr(self.backend, "shares_prompts", True))

    def _sums(self, policy: Policy, trees: Sequence[Tree], *, share_prompts: bool | None = None) -> Tensor:
        batch = lay_out(trees, share_prompts=self._shares if share_prompts is None else share_prompts).to(self.device)
        with torch.no_grad():
            return Scores(policy.score(batch), batch.sequence_M, batch.num_sequences).sums()

    def _gradient(self, policy: Policy, trees: Sequence[Tree]) -> Tensor:
        """Of the sum of all scores, by every trained parameter, end to end."""
        policy.module.zero_grad()
        policy.score(lay_out(trees, share_prompts=self._shares).to(self.device)).sum().backward()  # type: ignore[no-untyped-call]
        found = [torch.zeros_like(each) if each.grad is None else each.grad for each in _trained(policy)]
        return torch.cat([each.detach().double().flatten() for each in found])

    def _reference_sums(self, policy: Policy, trees: Sequence[Tree]) -> Tensor:
        with policy.reference():
            return self._sums(policy, trees)

    def _move(self, policy: Policy) -> None:
        """Change every trained parameter."""
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in _trained(policy):
                parameter.add_(torch.randn_like(parameter))


def _trained(policy: Policy) -> Iterator[Any]:
    return (parameter for parameter in policy.module.parameters() if parameter.requires_grad)

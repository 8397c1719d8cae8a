"""What a policy is asked in the evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.example import Example, Message
from zephyr_kit.protocols import Policy, Reply, Request, Sampling, Scores, Tokenizer

TOKENS_PER_BATCH = 2000


@dataclass(frozen=True, slots=True)
class Measured:
    """What a model said."""

    loss: float
    """Per token of the held-out answers."""
    margins: tuple[float, ...]
    """Log-probability of the chosen completion less that of the rejected one, of each pair."""
    replies: tuple[Reply, ...]

    @property
    def texts(self) -> list[str]:
        """Of the replies."""
        return [reply.text for reply in self.replies]


def measure(
    policy: Policy,
    tokenizer: Tokenizer,
    chats: Sequence[Example],
    pairs: Sequence[Example],
    *,
    dialogues: Sequence[tuple[Message, ...]],
    sampling: Sampling,
) -> Measured:
    """Everything that is asked of one model."""
    loss = held_out_loss(policy, tokenizer, chats)
    margins = preference_margins(policy, tokenizer, pairs)
    return Measured(loss, margins, write_replies(policy, dialogues, sampling))


def held_out_loss(policy: Policy, tokenizer: Tokenizer, chats: Sequence[Example]) -> float:
    """Mean surprise per trained token."""
    scored = list(score_all(policy, tokenizer, chats))
    return -sum(scores.logp_M.sum().item() for scores in scored) / sum(len(scores.logp_M) for scores in scored)


def preference_margins(policy: Policy, tokenizer: Tokenizer, pairs: Sequence[Example]) -> tuple[float, ...]:
    """How much likelier each chosen completion is than the rejected one."""
    sums = torch.cat([scores.sums() for scores in score_all(policy, tokenizer, pairs)])
    return tuple((sums[0::2] - sums[1::2]).tolist())


@torch.no_grad()
def score_all(policy: Policy, tokenizer: Tokenizer, examples: Sequence[Example]) -> Iterator[Scores]:
    """The token log-probabilities of all examples, batch by batch, on the host."""
    device = next(policy.module.parameters()).device
    for trees in in_batches([tokenizer.encode(example) for example in examples]):
        batch = lay_out(trees).to(device)
        yield Scores(policy.score(batch).double().cpu(), batch.sequence_M.cpu(), batch.num_sequences)


def in_batches(trees: Sequence[Tree]) -> Iterator[list[Tree]]:
    """Consecutive examples of about 2000 tokens together."""
    batch: list[Tree] = []
    for tree in trees:
        if batch and sum(kept.num_tokens for kept in (*batch, tree)) > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def write_replies(policy: Policy, dialogues: Sequence[tuple[Message, ...]], sampling: Sampling) -> tuple[Reply, ...]:
    """The policy's reply to each dialogue, another seed for each of them."""
    requests = [Request(dialogue, replace(sampling, seed=sampling.seed + number)) for number, dialogue in enumerate(dialogues)]
    replies = dict(policy.generate(requests))
    return tuple(replies[number] for number in range(len(requests)))

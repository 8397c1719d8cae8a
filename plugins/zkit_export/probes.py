"""What a model is asked, before and after it is exported."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zephyr_kit import ZkitError
from zephyr_kit.batch import Batch, Tree, lay_out
from zephyr_kit.example import TEXT, Example, ExampleError, Message
from zephyr_kit.models import NamedModel
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import Policy, PolicyWithDistributions, Request, Sampling, Tokenizer
from zephyr_kit.stages import TrainStage
from zkit_export.layers import Seen

NUM_PROMPTS, MOST_PROMPT, MOST_REPLY, MOST_OWN = 8, 512, 48, 32
"""How many prompts of at most how many tokens, and how many tokens of the replies in the data, and of the model's own."""
MOST_ROWS_READ = 200
"""To find so many that will do."""
BUILT_IN = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Write a sentence about a small dog.", "The small dog ran across the garden and barked at the gate."),
    ("Name three colours.", "Red, green and blue."),
    ("How do I boil an egg?", "Put it into boiling water for eight minutes, then cool it under cold water."),
)


@dataclass(frozen=True)
class Probes:
    """Dialogues with replies."""

    examples: tuple[Example, ...]
    origin: str
    """Where they are from, in words."""


@dataclass(frozen=True)
class Look:
    """What a model says of every token in the place of each token of the replies."""

    trees: tuple[Tree, ...]
    """Those of the data, then the model's own."""
    num_own: int
    logp_MV: tuple[Tensor, ...]
    """For each tree, in float32 on the host."""
    seen: Seen
    """What its layers read and wrote."""


def find_probes(model: NamedModel, tokenizer: Tokenizer) -> Probes:
    """Dialogues of the run's held-out data; else of what it was trained on; else built-in ones."""
    stage, positions = model.stage, model.backend.max_length(model.start)
    most = min(MOST_PROMPT, (positions or MOST_PROMPT + MOST_REPLY) - MOST_REPLY)
    if stage is not None and isinstance(stage.task, TrainStage):
        for name, portions in (("held-out data", stage.task.held_out), ("training data", stage.task.data)):
            found = tuple(itertools.islice(_usable(portions, tokenizer, most), NUM_PROMPTS))
            if found:
                return Probes(found, f"{len(found)} rows of the {name} of stage {stage.name}")
    own = [Example((Message("user", asked),), ((Message("assistant", reply),),), origin="built in") for asked, reply in BUILT_IN]
    found = tuple(example for example in own if _fits(example, tokenizer, most))
    if not found:
        raise ZkitError(f"{model.place}: its tokenizer takes no row of the data, nor any plain question, so that nothing can be compared")
    return Probes(found, "built-in prompts")


def look(policy: Policy, tokenizer: Tokenizer, probes: Probes, device: torch.device) -> Look:
    """Ask the model."""
    policy.module.eval()
    requests = [Request(example.prompt, Sampling(MOST_OWN)) for example in probes.examples]
    replies = dict(policy.generate(requests))
    own = [_with_reply(example, replies[number].text) for number, example in enumerate(probes.examples) if replies[number].text]
    trees = [_shortened(tokenizer.encode(example), MOST_REPLY) for example in probes.examples]
    own_trees = [_shortened(tree, MOST_OWN) for example in own if (tree := _encoded(example, tokenizer)) is not None]
    every, seen = (*trees, *own_trees), Seen()
    with seen.watching(policy.module):
        look_at(policy, every[0], device)
    return Look(every, len(own_trees), tuple(look_at(policy, tree, device) for tree in every), seen)


def look_at(policy: Policy, tree: Tree, device: torch.device) -> Tensor:
    """What the model says in the place of each target of one example, (M, V)."""
    if not isinstance(policy, PolicyWithDistributions):
        raise ZkitError(f"{type(policy).__name__} does not say what it thinks of every token (`distributions`), so nothing can be compared")
    return policy.distributions(row(tree).to(device)).float().cpu()


def row(tree: Tree) -> Batch:
    """The example by itself."""
    return lay_out([tree], share_prompts=False)


def _usable(portions: Sequence[Portion], tokenizer: Tokenizer, most: int) -> Iterator[Example]:
    for portion in portions:
        if portion.source.problems():
            continue
        for example in itertools.islice(portion.rows(), MOST_ROWS_READ):
            if isinstance(example, Example) and example.prompt and all(message.role != TEXT for message in example.prompt):
                first = Example(example.prompt, example.completions[:1], origin=example.origin)
                if _fits(first, tokenizer, most):
                    yield first


def _fits(example: Example, tokenizer: Tokenizer, most: int) -> bool:
    tree = _encoded(example, tokenizer)
    return tree is not None and len(tree.prompt) <= most


def _encoded(example: Example, tokenizer: Tokenizer) -> Tree | None:
    """None for what the tokenizer, or the template, does not take."""
    try:
        return tokenizer.encode(example)
    except (ExampleError, ZkitError):
        return None


def _with_reply(example: Example, reply: str) -> Example:
    return Example(example.prompt, ((Message("assistant", reply),),), origin=example.origin)


def _shortened(tree: Tree, most: int) -> Tree:
    return Tree(tree.prompt, tuple(ids[:most] for ids in tree.completions), tuple(flags[:most] for flags in tree.trained))

"""The arithmetic that a step asks of the model: what the mathematics needs, whatever a program does besides.

A token that passes a matrix of n weights costs 2 n operations forward, 2 n for the gradient of its input, and 2 n
for the gradient of the weights if they are trained. The head counts for trained targets alone. Attention counts 4 d
for each pair of tokens that see each other (d: width of all heads), and twice that backward. What is computed again
in the backward pass, norms, activations and softmax count nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.cases import RANK

if TYPE_CHECKING:
    from benchmarks.models import Shape
    from zephyr_kit.batch import Tree

VOCABULARY = 32_000
FROZEN, TRAINED = 4, 6
"""Operations for each weight of a matrix and each token that passes it, forward and backward."""


@dataclass(frozen=True)
class Load:
    """What passes through the model."""

    tokens: int = 0
    targets: int = 0
    pairs: int = 0
    """Of tokens, one of which sees the other, or itself."""

    def __add__(self, other: Load) -> Load:
        return Load(self.tokens + other.tokens, self.targets + other.targets, self.pairs + other.pairs)


def real(trees: Sequence[Tree]) -> Load:
    """Every completion with its prompt, as a model without sharing reads them, without padding."""
    lengths = [len(tree.prompt) + len(ids) for tree in trees for ids in tree.completions]
    return Load(sum(lengths), _targets(trees), sum(map(_causal, lengths)))


def prompts_once(trees: Sequence[Tree]) -> Load:
    """Every prompt once."""
    replies = [(len(ids), len(tree.prompt)) for tree in trees for ids in tree.completions]
    pairs = sum(_causal(len(tree.prompt)) for tree in trees) + sum(_causal(length) + length * prompt for length, prompt in replies)
    return Load(sum(tree.num_tokens for tree in trees), _targets(trees), pairs)


def padded(trees: Sequence[Tree]) -> Load:
    """One batch of sequences that are all as long as the longest."""
    lengths = [len(tree.prompt) + len(ids) for tree in trees for ids in tree.completions]
    return Load(len(lengths) * max(lengths), _targets(trees), len(lengths) * _causal(max(lengths)))


def operations(load: Load, shape: Shape, method: str) -> int:
    """Of a step on that load."""
    base = TRAINED if method == "full" else FROZEN
    body = sum(inputs * outputs for inputs, outputs in matrices(shape))
    adapters = 0 if method == "full" else RANK * sum(inputs + outputs for inputs, outputs in matrices(shape))
    each_token = shape.layers * (base * body + TRAINED * adapters)
    return load.tokens * each_token + load.targets * base * VOCABULARY * shape.width + load.pairs * 12 * shape.layers * shape.width


def matrices(shape: Shape) -> list[tuple[int, int]]:
    """Inputs and outputs of the matrices of a layer."""
    values = shape.width // shape.heads * shape.kv_heads
    attention = [(shape.width, shape.width), (shape.width, values), (shape.width, values), (shape.width, shape.width)]
    return [*attention, (shape.width, shape.mlp_width), (shape.width, shape.mlp_width), (shape.mlp_width, shape.width)]


def _causal(length: int) -> int:
    return length * (length + 1) // 2


def _targets(trees: Sequence[Tree]) -> int:
    """Without a prompt, nothing comes before the first token."""
    return sum(int((flags if len(tree.prompt) else flags[1:]).sum()) for tree in trees for flags in tree.trained)

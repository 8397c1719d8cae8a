"""Models, objectives, and what they run on.

Tensor names carry their shape: T tokens, M targets, N sequences (completions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from zephyr_kit import Unit

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

    from zephyr_kit.batch import Batch, Tree
    from zephyr_kit.example import Example
    from zephyr_kit.protocols.replies import Reply, Request


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probability of each of the M target tokens, and the completion it belongs to.

    Completions come in the order of their examples: with pairs, 0::2 are the chosen ones
    and 1::2 the rejected ones.
    """

    logp_M: Tensor
    sequence_M: Tensor
    num_sequences: int

    def sums(self) -> Tensor:
        """Log-probability of each completion, (N,)."""
        return self._by_sequence(self.logp_M)

    def means(self) -> Tensor:
        """Average log-probability of a target token of each completion, (N,)."""
        return self.sums() / self.lengths()

    def lengths(self) -> Tensor:
        """Number of target tokens of each completion, (N,)."""
        return self._by_sequence(self.logp_M.new_ones(self.logp_M.shape))

    def __getattr__(self, name: str) -> Any:
        """Say what there is in place of what there is not."""
        raise AttributeError(
            f"scores have no `{name}`: an objective sees the log-probability of each target token (`logp_M`), and no logits. The head "
            "never holds a (tokens x vocabulary) matrix, and an objective that needs one cannot be packed, cached or certified"
        )

    def _by_sequence(self, value_M: Tensor) -> Tensor:
        return value_M.new_zeros(self.num_sequences).index_add(0, self.sequence_M, value_M)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Totals over a batch; the engine divides them by the number of units in the step.

    `loss` is a scalar with a graph; every metric is a scalar without one.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss that is a sum over tokens or over examples, and so can be added up in any order.

    One that cannot keep a law of `zephyr_kit.testing` says so in the open: `breaks: ClassVar[Mapping[str, str]]`, on the class, from
    the law's name to the reason. What rests on that law is then no longer promised for it, and reports and certificates tell.
    """

    completions: ClassVar[int]
    unit: ClassVar[Unit]

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the model that the stage started from."""
        ...

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        """Loss and metrics of a batch; `reference` is None unless `needs_reference`."""
        ...


class Tokenizer(Protocol):
    """Turns examples into token ids, with the chat template; picklable.

    One that writes by a template may have its digest as `template_digest`, for the record of the run.
    """

    def encode(self, example: Example) -> Tree:
        """Token ids and trained tokens; raises `ExampleError` when it cannot be done rightly."""
        ...

    def fingerprint(self) -> str:
        """A text that changes whenever the ids would."""
        ...

    def render(self, example: Example) -> Sequence[str]:
        """What `encode` makes ids of: for each completion, the prompt and it as the chat template writes them."""
        ...

    def pieces(self, ids: Sequence[int]) -> Sequence[str]:
        """The text of each token, control tokens too; joined, that of all. A character of several tokens stands with its last one."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a reply."""
        ...


@dataclass(frozen=True, slots=True)
class Start:
    """What a stage starts from."""

    folder: Path | None = None
    """The model that the stage before left; None for the backend's own weights."""
    changed: frozenset[str] = frozenset()
    """Keys of `[model]` that the stage sets for itself."""
    seed: int = 0
    """For weights that start at random."""
    earlier: tuple[tuple[Backend, frozenset[str]], ...] = ()
    """The backends of the stages that train before, with the keys each sets for itself; for a skeleton, before `folder` is there."""


class Policy(Protocol):
    """A loaded model."""

    @property
    def module(self) -> nn.Module:
        """The root module; its forward is `score`. Its parameters that need a gradient are trained."""
        ...

    def score(self, batch: Batch) -> Tensor:
        """Log-probabilities of the targets, (M,), in float32 or better."""
        ...

    def keep_reference(self) -> None:
        """Called once, before the first step, when `reference` will be entered while training."""
        ...

    def shard(self, mesh: DeviceMesh) -> None:
        """Share the weights out over the devices of a mesh, in place of a copy on each.

        Called once, after `keep_reference` and before the first score. From then on every rank
        calls `score` and `save` together with the others, and the first one writes.
        """
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Within it, `score` answers for the model as the stage found it; restores itself always."""
        ...

    def generate(self, requests: Sequence[Request], *, on_text: Callable[[str], None] | None = None) -> Iterator[tuple[int, Reply]]:
        """The reply to each request, under its number, as soon as it is written; `on_text` streams that of a single one.

        A reply depends on its own request, seed and all, and not on those that are answered beside it.
        Raises `ZkitError` for one that cannot be answered, after all that can be.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the model in Hugging Face format: weights or adapter, tokenizer, template."""
        ...


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The model that a stage would train, its weights nowhere: sizes are true, values are not."""

    policy: Policy
    vocabulary: int
    """How many tokens the head tells apart: what has so many columns is its."""
    mapped: int = 0
    """Bytes of weight files that stay mapped on a CPU while the model holds them in another form."""
    remark: str = ""
    """What a reader of the plan should know, as that the model's shape is from a table."""


@dataclass(frozen=True, slots=True)
class Leaner:
    """A setting that needs less memory than the present one."""

    key: str
    value: str
    """As TOML writes it."""
    offer: Any
    """The table with it: a backend, or an optimizer."""
    same_result: bool = False
    """Whether the model that comes out is the same, up to rounding."""


class Backend(Protocol):
    """A preset's `[model]` table.

    One whose trained models cannot compute the prompt of several completions once says so by
    `shares_prompts = False`, on the class: each completion then comes with a prompt of its own.
    """

    def problems(self, device: torch.device, *, start: Start) -> Sequence[str]:
        """What stands in the way of loading it, found within three seconds; empty if nothing."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """JSON values that change whenever the weights it starts from would."""
        ...

    def scores_fingerprint(self, start: Start) -> Mapping[str, Any]:
        """JSON values that change whenever the log-probabilities of the model that a stage starts from would.

        Content of weights and adapters, not where they lie; dtype; quantisation; the seed where
        weights start at random. Neither what is yet to be trained nor what changes no result (a
        kernel, activation checkpointing), nor the template, which the tokens show.
        """
        ...

    def max_length(self, start: Start) -> int | None:
        """How many positions the model has, without loading it; None if there is no limit."""
        ...

    def tokenizer(self, start: Start) -> Tokenizer:
        """The tokenizer, without loading the model."""
        ...

    def load(self, device: torch.device, *, start: Start, train: bool) -> Policy:
        """The model, ready to be trained, or only to be read."""
        ...

    def skeleton(self, start: Start) -> Skeleton:
        """The module that `load` would make for training, without reading weights.

        Called under `torch.device("meta")`: what it makes has a shape and no data. Raises when
        the shape cannot be known on this machine.
        """
        ...

    def leaner(self) -> Sequence[Leaner]:
        """Settings that need less memory, the mildest first; each with those before it."""
        ...

    def miniature(self, folder: Path) -> Backend:
        """The same model shrunken, with random weights and a tokenizer of its own, offline."""
        ...


class Attention(Protocol):
    """A kernel for packed rows that share prompts; equal to softmax attention under `visible`.

    `attend` is called once for each layer: what is worked out of the row can be kept in `batch.prepared`.
    """

    def problems(self, device: torch.device) -> Sequence[str]:
        """Why it cannot run on `device`; empty if it can."""
        ...

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float, window: int | None, dropout: float
    ) -> Tensor:
        """`query` (heads, T, size), `key` and `value` (key-value heads, T, size) -> (heads, T, size)."""
        ...


@runtime_checkable
class ChoosingAttention(Protocol):
    """An attention that leaves the work to another."""

    def choice(self, device: torch.device) -> str:
        """What it takes on `device`, and why."""
        ...


class OptimizerFactory(Protocol):
    """A preset's `optimizer` table.

    One whose `updates_bfloat16` is true gets bfloat16 parameters themselves, with float32 gradients, and no float32 copies: it
    must not lose updates to rounding (see `updates_bfloat16` below).
    """

    def problems(self, device: torch.device) -> Sequence[str]:
        """Why it cannot run on `device`; empty if it can."""
        ...

    def build(self, parameters: Sequence[nn.Parameter], *, learning_rate: float) -> torch.optim.Optimizer:
        """The optimizer of these parameters. One that heeds `found_inf` on the device, as torch's fused ones do, is never waited for.

        Random numbers that it draws while it steps are a function of the seed and the step alone, the same on all ranks.
        """
        ...

    def leaner(self) -> Sequence[Leaner]:
        """Optimizers with a smaller state, the mildest first."""
        ...


def updates_bfloat16(factory: OptimizerFactory) -> bool:
    """Whether its optimizers go without full-precision copies of bfloat16 parameters; those that say nothing do not."""
    return bool(getattr(factory, "updates_bfloat16", False))


def broken_laws(offer: object) -> Mapping[str, str]:
    """The laws that a plugin's offer says it breaks, by name, and why; those that say nothing break none."""
    found: Mapping[str, str] = getattr(offer, "breaks", {})
    return found


def num_units(objective: Objective, batch: Batch) -> int:
    """How many tokens, or examples, the loss of this batch is a sum over."""
    if objective.unit is Unit.TOKEN:
        return len(batch.target_M)
    return batch.num_sequences // objective.completions

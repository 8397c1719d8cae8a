"""Models, and what they run on.

Tensor names carry their shape: T tokens, M targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    from zephyr_kit.batch import Batch, Tree
    from zephyr_kit.example import Example
    from zephyr_kit.protocols.replies import Reply, Request


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

    def share_rows(self, group: ProcessGroup) -> None:
        """Compute each batch together with the other ranks of a group, each a part of it.

        Called once, like `shard`. From then on these ranks call `score` together, with the same batch; each gets
        the scores of all targets, and its backward pass gives a part of every gradient, of which the whole is the sum.
        Raises `ZkitError` where the model cannot be divided so.
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


@runtime_checkable
class PolicyWithDistributions(Protocol):
    """A policy that also says what it thinks of all other tokens: what `zkit export` compares."""

    def distributions(self, batch: Batch) -> Tensor:
        """Log-probabilities of every token of the vocabulary in the place of each target, (M, V), as `score` has them; for few targets."""
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


@runtime_checkable
class MergingBackend(Protocol):
    """A backend that can write its models with their adapters merged in."""

    def merge(self, folder: Path, *, start: Start, dtype: str | None, advance: Callable[[int], None]) -> None:
        """Write the model of `start` in Hugging Face format, whole: weights, configuration, generation settings, tokenizer, template.

        The sums are made in float32 at least, on the base as the adapter was trained on it, rounded to few bits or not; what is
        written is `dtype`, or what the model computes in. Piece by piece: a model larger than the memory is merged too. `advance`
        is told the bytes written so far. Raises ZkitError for what would be left out.
        """
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


@runtime_checkable
class ChoosingBackend(Protocol):
    """The class of a backend that chooses among kernels by itself."""

    def choices(self, device: torch.device) -> Mapping[str, str]:
        """What a bfloat16 model gets on `device` of what is not set, and why, by what it is."""
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
    found = getattr(offer, "breaks", {})
    return found if isinstance(found, Mapping) else {}  # a property, where it depends on keys

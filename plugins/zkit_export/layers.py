"""Every layer by itself: what the trained model's layers made of their inputs, and what the exported weights make of them.

Log-probabilities hardly tell of one layer among hundreds whose adapter was left out; its own output does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf, isnan
from pathlib import Path
from statistics import median
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from zephyr_kit.weights import weight_files
from zkit_export.refusal import ParityError

MOST_ROWS = 8
"""Of a layer's input; enough, for each has as many figures as the layer is wide."""
ALLOWED = {"float32": 1e-3, "bfloat16": 0.008, "float16": 0.008}
"""The share of a layer's output that rounding to a type explains."""
TIMES_MEDIAN, MOST_ALLOWED = 3.0, 0.05
"""On a base in 8 bits layers round what they read too, and differ more, but all of them alike."""


def allowed_of_layers(*types: str) -> float:
    """What the coarsest of these types explains."""
    return max(ALLOWED[name] for name in types)


@dataclass
class Seen:
    """What linear layers read and wrote, by the names of their modules."""

    passed: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)
    """Layers with weights of their own, all of which are to be compared; a head's may be the embeddings'."""

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Within it, note what passes through every layer that has two dimensions of weights."""
        layers = dict(_linear(module))
        shared = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
        self.own += [name for name, layer in layers.items() if id(dict(layer.named_parameters(recurse=False)).get("weight")) not in shared]
        hooks = [layer.register_forward_hook(partial(self._note, name)) for name, layer in layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, name: str, layer: nn.Module, given: Any, made: Any) -> None:
        if name not in self.passed and given and isinstance(made, Tensor):
            read_RI, wrote_RO = (part.detach().reshape(-1, part.shape[-1])[-MOST_ROWS:] for part in (given[0], made))
            self.passed[name] = (read_RI.float().cpu(), wrote_RO.float().cpu())


@dataclass(frozen=True, slots=True)
class LayerParity:
    """The layer that differs most."""

    num_layers: int
    worst: str
    error: float
    """|x W' - y| / |y|, by the exported weights W' and the trained layer's input and output."""
    allowed: float
    missed: tuple[str, ...] = ()
    """Layers of the trained model that nothing exported was compared with."""

    def check(self) -> None:
        """Raise ParityError where rounding does not explain it, or a layer was not looked at."""
        if self.missed or not self.num_layers:
            which = f"{self.missed[0]} (and {len(self.missed) - 1} more)" if self.missed else "any layer"
            raise ParityError(f"{which} could not be compared: it read nothing, or no exported weights have its name; nothing was kept")
        if not self.error <= self.allowed:
            raise ParityError(
                f"{self.worst} is not the layer that was trained: what it writes differs by {self.error:.2%}, where its type explains "
                f"{self.allowed:.2%}; nothing was kept"
            )


def compare_layers(folder: Path, seen: Seen, *, allowed: float, eight_bits: bool = False) -> LayerParity:
    """Let the exported weights, layer by layer, read what the trained ones have read; a base in `eight_bits` is allowed more."""
    files = weight_files(str(folder), None)
    errors = {name: error for name, file in files.items() if (error := _error(name, file, files, seen.passed)) is not None}
    missed = tuple(layer for layer in seen.own if not any(f".{layer}.weight".endswith(f".{name}") for name in errors))
    if not errors:
        return LayerParity(0, "", 0.0, allowed, missed)
    worst = max(errors, key=lambda name: inf if isnan(errors[name]) else errors[name])
    if eight_bits:
        allowed = max(allowed, min(MOST_ALLOWED, TIMES_MEDIAN * median(errors.values())))
    return LayerParity(len(errors), worst, errors[worst], allowed, missed)


def _error(name: str, file: Path, files: Mapping[str, Path], passed: Mapping[str, tuple[Tensor, Tensor]]) -> float | None:
    layer = name.removesuffix(".weight")
    found = next((both for module, both in passed.items() if f".{module}".endswith(f".{layer}")), None)
    if found is None or layer == name:
        return None
    read_RI, wrote_RO = found
    bias = f"{layer}.bias"
    added = _tensor(files[bias], bias) if bias in files else None
    made_RO = nn.functional.linear(read_RI, _tensor(file, name), added)
    return float((made_RO - wrote_RO).norm() / wrote_RO.norm())


def _tensor(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(name).float()
        return tensor


def _linear(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers by name, adapted and quantised ones too, which are not all of torch's class; what stands within one is part of it."""
    last = None
    for name, layer in module.named_modules():
        if last is not None and name.startswith(f"{last}."):
            continue
        if isinstance(getattr(layer, "in_features", None), int) and not isinstance(layer, nn.Embedding):
            last = name
            yield name, layer

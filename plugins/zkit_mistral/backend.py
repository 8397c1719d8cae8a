"""The backend `mistral`. Nothing here imports torch or transformers before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.config import plain
from zephyr_kit.protocols import Leaner, Skeleton, Start
from zephyr_kit.weights import weights_fingerprint
from zkit_mistral.settings import Lora, Quantize, Scratch, Settings

if TYPE_CHECKING:
    import torch

    from zkit_mistral.policy import MistralPolicy
    from zkit_mistral.tokenizer import ChatTokenizer

MACHINE_KEYS = ("weights", "attention", "activation_checkpointing", "layers_kept", "activation_offload", "compile", "kernels")
"""What changes no result, and the weights, which stand in the fingerprint by their content."""

__all__ = ["Lora", "Mistral", "Quantize", "Scratch"]


@dataclass(frozen=True, kw_only=True)
class Mistral(Settings):
    """A causal language model of transformers."""

    def problems(self, device: torch.device, *, start: Start) -> Sequence[str]:
        from zkit_mistral.reach import problems

        return problems(self, device, start=start)

    @classmethod
    def choices(cls, device: torch.device) -> Mapping[str, str]:
        """See `ChoosingBackend`."""
        from zkit_mistral.reach import choices

        return choices(device)

    def fingerprint(self) -> Mapping[str, Any]:
        from zkit_mistral.reach import template_fingerprint

        settings = {key: value for key, value in plain(self).items() if key not in MACHINE_KEYS}
        if self.scratch is not None:
            settings["scratch"]["text"] = [source.fingerprint() for source in self.scratch.text]
        weights = None if self.weights is None else weights_fingerprint(self.weights, self.revision)
        return {**settings, "template": template_fingerprint(self), "weights": weights}

    def scores_fingerprint(self, start: Start) -> Mapping[str, Any]:
        from zkit_mistral.content import scores_fingerprint

        return scores_fingerprint(self, start)

    def max_length(self, start: Start) -> int | None:
        from zkit_mistral.loading import max_length

        return max_length(self, start)

    def tokenizer(self, start: Start) -> ChatTokenizer:
        from zkit_mistral.loading import tokenizer

        return tokenizer(self, start)

    def load(self, device: torch.device, *, start: Start, train: bool) -> MistralPolicy:
        from zkit_mistral.loading import load

        return load(self, device, start=start, train=train)

    def merge(self, folder: Path, *, start: Start, dtype: str | None, advance: Callable[[int], None]) -> None:
        from zkit_mistral.merging import merge

        merge(self, folder, start=start, dtype=dtype, advance=advance)

    def skeleton(self, start: Start) -> Skeleton:
        from zkit_mistral.skeleton import skeleton

        return skeleton(self, start)

    def leaner(self) -> Sequence[Leaner]:
        from zkit_mistral.leaner import leaner

        return leaner(self)

    def miniature(self, folder: Path) -> Mistral:
        from zkit_mistral.miniature import make_miniature

        place = make_miniature(self, folder)
        return replace(self, weights=str(place), scratch=None, revision=None)

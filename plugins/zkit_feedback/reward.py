"""The judge `reward_model`: a sequence classifier with one label. Nothing here imports torch or transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt

from zephyr_kit.fingerprint import file_fingerprint
from zephyr_kit.protocols import Bench, Case, Failure, Judgement

if TYPE_CHECKING:
    import torch

    from zkit_feedback.scripted import ScriptedJudge


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """Scores a reply by a reward model of transformers: a sequence classifier with one label, higher being better."""

    weights: str
    """A folder in Hugging Face format, or a repository's name."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    dtype: Literal["bfloat16", "float16", "float32", "float64"] = "bfloat16"
    template: str | None = None
    """A file ending in .jinja, for a model that has no chat template of its own."""
    tokens_per_batch: Annotated[int, Gt(0)] = 16_384
    """Padding included; a longer dialogue is scored by itself."""

    def __post_init__(self) -> None:
        if self.template is not None and not self.template.endswith(".jinja"):
            raise ValueError(f'`template` = "{self.template}" should be a file ending in .jinja')

    @property
    def place(self) -> str:
        """`weights` as transformers takes them."""
        folder = Path(self.weights).expanduser()
        return str(folder.absolute()) if folder.is_dir() else self.weights

    def judge(self, cases: Sequence[Case], bench: Bench) -> Iterator[tuple[int, Judgement | Failure]]:
        """A judgement of each case; the model is in memory for as long as it lasts."""
        from zkit_feedback.classifier import score_cases

        return score_cases(self, cases, bench.device)

    def fingerprint(self) -> Mapping[str, Any]:
        from zkit_feedback.weights import weights_fingerprint

        template = file_fingerprint(Path(self.template)) if self.template else None
        weights = weights_fingerprint(self.weights, self.revision)
        return {"use": "reward_model", "weights": weights, "dtype": self.dtype, "template": template}

    def problems(self, device: torch.device) -> Sequence[str]:
        from zkit_feedback.weights import classifier_problems, weights_problems

        if self.template is not None and not Path(self.template).exists():
            return [f"reward_model: template: there is no file {Path(self.template).absolute()}"]
        return weights_problems(self.weights, self.revision) or classifier_problems(self)

    def miniature(self, folder: Path) -> ScriptedJudge:
        from zkit_feedback.scripted import ScriptedJudge

        return ScriptedJudge(instead_of=self.weights)

"""The judge `reward_model`: a sequence classifier with one label. Nothing here imports torch or transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt

from zephyr_kit.fingerprint import file_fingerprint
from zephyr_kit.protocols import Bench, Case, Failure, Judgement
from zephyr_kit.records import read_json
from zephyr_kit.weights import CONFIG, MEND, local_file, place_of, weights_fingerprint, weights_problems

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
        return place_of(self.weights)

    def judge(self, cases: Sequence[Case], bench: Bench) -> Iterator[tuple[int, Judgement | Failure]]:
        """A judgement of each case; the model is in memory for as long as it lasts."""
        from zkit_feedback.classifier import score_cases

        return score_cases(self, cases, bench.device)

    def fingerprint(self) -> Mapping[str, Any]:
        template = file_fingerprint(Path(self.template)) if self.template else None
        weights = weights_fingerprint(self.weights, self.revision)
        return {"use": "reward_model", "weights": weights, "dtype": self.dtype, "template": template}

    def problems(self, device: torch.device) -> Sequence[str]:
        if self.template is not None and not Path(self.template).exists():
            return [f"reward_model: template: there is no file {Path(self.template).absolute()}"]
        return weights_problems(self.weights, self.revision) or self._classifier_problems()

    def miniature(self, folder: Path) -> ScriptedJudge:
        from zkit_feedback.scripted import ScriptedJudge

        return ScriptedJudge(instead_of=self.weights)

    def _classifier_problems(self) -> list[str]:
        """A model that is no reward model, and one without a chat template; nothing yet of one that is not on this machine."""
        config = self._local(CONFIG)
        if config is None:
            return []
        where = f"weights = {json.dumps(self.weights)}"
        facts = read_json(config, MEND)
        kinds = facts.get("architectures") or ["no architecture"]
        if not kinds[0].endswith("ForSequenceClassification"):
            return [f"{where}: is a {kinds[0]}; a reward model is a …ForSequenceClassification with one label"]
        num_labels = len(facts.get("id2label") or [0, 1])
        if num_labels != 1:
            return [f"{where}: has {num_labels} labels; a reward model has one, the score"]
        if self.template is None and not self._has_template():
            return [f"{where}: its tokenizer has no chat template; write template = FILE.jinja"]
        return []

    def _has_template(self) -> bool:
        """A template stands in a file of its own, or in the tokenizer's."""
        if any(self._local(name) for name in ("chat_template.jinja", "chat_template.json")):
            return True
        settings = self._local("tokenizer_config.json")
        return settings is not None and bool(read_json(settings, MEND).get("chat_template"))

    def _local(self, name: str) -> Path | None:
        return local_file(self.weights, name, revision=self.revision)

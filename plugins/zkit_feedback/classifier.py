"""Scores of a sequence classifier, batched by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zephyr_kit import ZkitError
from zephyr_kit.devices import give_back_memory
from zephyr_kit.example import Message
from zephyr_kit.protocols import Case, Failure, Judgement
from zephyr_kit.remote_code import code_arguments
from zephyr_kit.template_process import TemplateWriter, writer_for
from zephyr_kit.weights import admit, commit_of
from zkit_feedback.trouble import Unusable

if TYPE_CHECKING:
    from zkit_feedback.reward import RewardModel

CASES_AT_ONCE = 256
"""Sorted by length together; small enough that judgements come soon, and are kept."""

Ids = list[int]


def score_cases(settings: RewardModel, cases: Sequence[Case], device: torch.device) -> Iterator[tuple[int, Judgement | Failure]]:
    """A judgement of each case, a window of cases after the other; the model goes when the iterator does."""
    give_back_memory()
    classifier = load(settings, device)
    for first in range(0, len(cases), CASES_AT_ONCE):
        yield from enumerate(_window(classifier, cases[first : first + CASES_AT_ONCE], settings.tokens_per_batch), first)


@dataclass(frozen=True)
class Classifier:
    """A loaded reward model."""

    model: Any
    tokens: Any
    device: torch.device
    pad: int | None
    """The token after which the model looks for a row's last one; None if it has none of its own."""

    def ids(self, dialogue: Sequence[Message], reply: str) -> Ids:
        """A dialogue and its reply as the model reads them; raises `Unusable` where it cannot."""
        turns = [{"role": turn.role, "content": turn.content} for turn in (*dialogue, Message("assistant", reply))]
        try:
            (text,) = self._writer.write(turns, [(len(turns), False)])
        except ZkitError:
            raise
        except Exception as error:  # a template is somebody's program: it may raise anything
            raise Unusable("the reward model's chat template refuses the dialogue", str(error)) from error
        ids: Ids = self.tokens(text, add_special_tokens=False)["input_ids"]
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is not None and len(ids) > positions:
            told = f"{len(ids):,} tokens of {positions:,}"
            raise Unusable("the dialogue with its reply is longer than the reward model's positions", told)
        return ids

    @cached_property
    def _writer(self) -> TemplateWriter:
        return writer_for(self.tokens.chat_template, self.tokens.special_tokens_map, ours=False)

    def scores(self, rows: Sequence[Ids], tokens_per_batch: int) -> list[float]:
        """The score of each row, whatever it is batched with."""
        found = [0.0] * len(rows)
        for batch in batches([len(row) for row in rows], tokens_per_batch):
            for number, score in zip(batch, self._batch([rows[number] for number in batch]), strict=True):
                found[number] = score
        return found

    @torch.inference_mode()
    def _batch(self, rows: Sequence[Ids]) -> list[float]:
        width, pad = max(map(len, rows)), _no_end(rows) if self.pad is None else self.pad
        # Without one the model refuses batches; which it is does not matter, for masks hide it.
        self.model.config.get_text_config().pad_token_id = pad
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self.device)
        seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.device)
        logits = self.model(input_ids=ids, attention_mask=seen).logits
        scores: list[float] = logits.double().squeeze(-1).tolist()
        return scores


def _no_end(rows: Sequence[Ids]) -> int:
    """A token that ends no row, so that it cannot be taken for padding."""
    ends = {row[-1] for row in rows}
    return next(token for token in range(len(ends) + 1) if token not in ends)


def batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Numbers of rows of like length, the longest first; a batch, padding included, has no more tokens than that, or one row."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _window(classifier: Classifier, cases: Sequence[Case], tokens_per_batch: int) -> Iterator[Judgement | Failure]:
    rows: list[Ids] = []
    places: list[range | Failure] = []
    for case in cases:
        try:
            own = [classifier.ids(case.dialogue, reply) for reply in case.replies]
        except Unusable as error:
            places.append(Failure(str(error)))
        else:
            places.append(range(len(rows), len(rows) + len(own)))
            rows += own
    scores = classifier.scores(rows, tokens_per_batch)
    for place in places:
        yield place if isinstance(place, Failure) else Judgement(tuple(scores[number] for number in place))


def load(settings: RewardModel, device: torch.device) -> Classifier:
    """The model and its tokenizer; raises ZkitError for what is no reward model."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    where = f"weights = {settings.weights!r}"
    revision = commit_of(settings.weights, settings.revision)
    admit(settings.weights, revision)
    no_code = code_arguments(None)
    tokens = AutoTokenizer.from_pretrained(settings.place, revision=revision, **no_code)
    if settings.template is not None:
        tokens.chat_template = Path(settings.template).read_text("utf-8")
    if isinstance(tokens.chat_template, dict):
        tokens.chat_template = tokens.chat_template.get("default")
    if not tokens.chat_template:
        raise ZkitError(f"{where}: its tokenizer has no chat template; write template = FILE.jinja")
    with _without_bars():
        model, found = AutoModelForSequenceClassification.from_pretrained(
            settings.place,
            revision=revision,
            dtype=getattr(torch, settings.dtype),
            device_map={"": device},
            output_loading_info=True,
            use_safetensors=True,
            **no_code,
        )
    if found["missing_keys"]:
        raise ZkitError(f"{where}: holds no {', '.join(sorted(found['missing_keys']))}, so it is no reward model")
    if model.config.num_labels != 1:
        raise ZkitError(f"{where}: has {model.config.num_labels} labels; a reward model has one, the score")
    return Classifier(model.eval(), tokens, device, model.config.get_text_config().pad_token_id)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without the library's own progress bar among those of the run."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

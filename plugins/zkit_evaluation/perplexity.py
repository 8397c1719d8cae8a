"""The suite `perplexity`: how surprised models are by data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_kit.protocols import Evaluation, Tokenizer
from zkit_evaluation.scoring import Scored

if TYPE_CHECKING:
    from zephyr_kit.batch import Tree
    from zephyr_kit.corpus import Corpus
    from zephyr_kit.reference import ReferenceScores
    from zephyr_kit.subjects import Subject
    from zkit_evaluation.intervals import Interval

COLUMNS = {
    "perplexity": "of a trained token, the end of a reply included; e to the loss",
    "loss": "surprise per trained token, in nats: what training calls the held-out loss",
    "bits per byte": "surprise per byte of the replies' text: compares across tokenizers",
    "tokens": "how many were predicted",
}


@dataclass(frozen=True, kw_only=True)
class Perplexity(Scored):
    """How surprised models are by the replies of dialogues, or by plain text."""

    def evaluate(self, models: Mapping[str, Subject], tokenizer: Tokenizer, folder: Path) -> Evaluation:
        """Measure each model on the tokens that its own tokenizer and template make."""
        from zkit_evaluation.scoring import corpus_of, score

        rows, intervals = {}, {}
        for name, subject in models.items():
            corpus = corpus_of(self, subject, completions=1, where=f"perplexity of {name}")
            scores = score(subject, corpus, f"data for {name}")
            rows[name], intervals[name] = measure(corpus, scores, subject.tokenizer)
        return Evaluation("Perplexity", COLUMNS, rows, intervals=intervals)

    def miniature(self, folder: Path) -> Perplexity:
        """The same on generated rows."""
        from zephyr_kit.smoke import small_portions

        return replace(self, data=small_portions(self.data, folder))


def measure(corpus: Corpus, scores: ReferenceScores, tokenizer: Tokenizer) -> tuple[dict[str, float | None], dict[str, Interval]]:
    """Every column of a model, and the intervals of those that have one; examples are drawn again, not tokens."""
    from zkit_evaluation.intervals import interval_of_ratio, known

    values = [scores.of([index]).double() for index in range(len(corpus))]
    nats = [-float(logp_M.sum()) for logp_M in values]
    tokens = [len(logp_M) for logp_M in values]
    num_bytes = [written_bytes(corpus[index], tokenizer) for index in range(len(corpus))]
    loss, bits = sum(nats) / sum(tokens), sum(nats) / math.log(2) / sum(num_bytes)
    row = {"perplexity": math.exp(loss), "loss": loss, "bits per byte": bits, "tokens": sum(tokens)}
    of_loss = interval_of_ratio(nats, tokens)
    of_bits = interval_of_ratio([each / math.log(2) for each in nats], num_bytes)
    of_perplexity = None if of_loss is None else (math.exp(of_loss[0]), math.exp(of_loss[1]))
    return dict(row), known({"perplexity": of_perplexity, "loss": of_loss, "bits per byte": of_bits})


def written_bytes(tree: Tree, tokenizer: Tokenizer) -> int:
    """Of the trained text in UTF-8, without the tokens that end it."""
    ids = [int(token) for part, trained in zip(tree.completions, tree.trained, strict=True) for token in part[trained]]
    return len("".join(tokenizer.pieces([token for token in ids if token not in tokenizer.ends])).encode())

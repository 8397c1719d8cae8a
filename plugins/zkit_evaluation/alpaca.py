"""The suite `alpaca-eval`: win rates over a reference's outputs, by the `alpaca_eval` package, which is imported only when it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt

from zephyr_kit import ZkitError
from zephyr_kit.example import Message
from zephyr_kit.fingerprint import file_fingerprint, folder_fingerprint
from zephyr_kit.protocols import Evaluation, Judge, Request, Sampling, Tokenizer
from zephyr_kit.records import write_text
from zkit_evaluation.located import located, located_problems, read_text
from zkit_evaluation.packages import unusable
from zkit_evaluation.replies import NUM_SAMPLES, Writing, ask, desk_for, file_of

if TYPE_CHECKING:
    from zephyr_kit.desk import Desk
    from zephyr_kit.subjects import Subject
    from zkit_evaluation.intervals import Interval

MODULES = ("alpaca_eval.annotators", "alpaca_eval.metrics")
ADVICE = (
    "AlpacaEval's instructions and reference outputs are not ours to ship (CC BY-NC 4.0): write  reference = "
    "\"hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json\"  (AlpacaEval 2), or …/alpaca_eval.json (AlpacaEval 1)"
)
TITLE = "AlpacaEval"
HALF_WIDTH = 1.96
"""Of the 95 % interval, in standard errors."""
WON, LOST, DRAWN = 2.0, 1.0, 1.5
"""The preference for the model's output, output_2, over the reference's."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class AlpacaEval(Writing):
    """AlpacaEval: how often a model's output is preferred to a reference's, as it is and with the influence of length taken out."""

    reference: str = ""
    """JSON: instructions with the reference's outputs, in AlpacaEval's format; a path, or hf://datasets/OWNER/NAME/FILE."""
    annotator: str = "weighted_alpaca_eval_gpt4_turbo"
    """One of alpaca_eval's, or a folder with a configs.yaml; it asks OpenAI, by the key in OPENAI_API_KEY."""
    judge: Judge | None = None
    """A judge in place of alpaca_eval's annotator, asked in both orders; the results compare with none that are published."""
    max_new_tokens: Annotated[int, Gt(0)] = 2048

    def problems(self) -> Sequence[str]:
        """The package, the reference's outputs, and the judge."""
        from zephyr_kit.devices import find_device

        found = [f"suite alpaca-eval: {why}"] if (why := unusable(*MODULES)) else []
        if not self.reference:
            return [*found, f"suite alpaca-eval: needs `reference`; {ADVICE}"]
        found += [f"suite alpaca-eval: {line}" for line in located_problems(self.reference, ADVICE)]
        if self.judge is not None:
            return [*found, *self.judge.problems(find_device())]
        if not any(os.environ.get(name) for name in ("OPENAI_API_KEY", "OPENAI_API_KEYS", "OPENAI_CLIENT_CONFIG_PATH")):
            found.append(f"suite alpaca-eval: annotator = {json.dumps(self.annotator)} needs a key in OPENAI_API_KEY, or set `judge`")
        return found

    def fingerprint(self) -> Mapping[str, Any]:
        """The content of the reference's outputs, and of an annotator's own folder."""
        own = Path(self.annotator)
        annotator = {"annotator": folder_fingerprint(own)} if self.judge is None and own.is_dir() else {}
        return {"reference": file_fingerprint(located(self.reference)) if self.reference else None, **annotator}

    def evaluate(self, models: Mapping[str, Subject], tokenizer: Tokenizer, folder: Path) -> Evaluation:
        """Ask every model, have its outputs compared, and let alpaca_eval work out the rates; all stand in files of `folder`."""
        if why := unusable(*MODULES):
            raise ZkitError(f"suite alpaca-eval: {why}")
        from zkit_evaluation.alpaca_metrics import annotate, rates

        reference = read_outputs(self.reference)
        desk = desk_for(models, "alpaca-eval", max_failed=self.max_failed)
        outputs = {name: self._outputs(desk, name, subject, reference) for name, subject in models.items()}
        rows: dict[str, dict[str, float | None]] = {}
        intervals: dict[str, dict[str, Interval]] = {}
        for name, own in outputs.items():
            _write(file_of(folder / "outputs", name), own)
            asked = {row["instruction"]: row for row in own}
            beside = [row for row in reference if row["instruction"] in asked]
            annotations = annotate(self, desk, beside, own, folder / "annotator")
            _write(file_of(folder / "annotations", name), annotations)
            found = {**rates(annotations, next(iter(models.values())).narrator), "compared": len(annotations)}
            rows[name], intervals[name] = self._table(found, own)
        samples = self._samples(reference, outputs)
        return Evaluation(TITLE, self._columns(reference), rows, samples, intervals)

    def miniature(self, folder: Path) -> AlpacaEval:
        """Two instructions of our own, and a judge that is offline."""
        from zkit_evaluation.miniature import StandInJudge, write_outputs

        judge = StandInJudge() if self.judge is None else self.judge.miniature(folder)
        return replace(self, reference=str(write_outputs(folder)), judge=judge, max_new_tokens=16, max_failed=1.0)

    def _outputs(self, desk: Desk, name: str, subject: Subject, reference: Sequence[Row]) -> list[Row]:
        """The model's own, in AlpacaEval's format; those that failed are left out, as published ones were."""
        from zephyr_kit.writing import seed_of

        def request(row: Row) -> Request:
            sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p, seed_of("alpaca-eval", row["instruction"], self.seed))
            return Request((Message("user", row["instruction"]),), sampling)

        texts = ask(desk, name, subject, [request(row) for row in reference], "outputs")
        return [
            {"dataset": row.get("dataset", ""), "instruction": row["instruction"], "output": text, "generator": name}
            for row, text in zip(reference, texts, strict=True)
            if text is not None
        ]

    def _columns(self, reference: Sequence[Row]) -> dict[str, str]:
        published = "compares with published results of this annotator and reference"
        compares = published if self.judge is None else "compares with none that are published"
        by = self.annotator if self.judge is None else f"{type(self.judge).__name__}, in both orders"
        return {
            "win rate": f"per cent of instructions on which it is preferred to {reference[0]['generator']}, by {by}: {compares}",
            "length-controlled": "the same at equal lengths, by alpaca_eval's regression; only for AlpacaEval's own instructions",
            "length": "mean length of its outputs, in characters",
            "compared": "how many outputs were compared; those that the judge has failed on are not",
        }

    def _table(self, found: Mapping[str, float | None], own: Sequence[Row]) -> tuple[dict[str, float | None], dict[str, Interval]]:
        row = {
            "win rate": found["win_rate"],
            "length-controlled": found.get("length_controlled_winrate"),
            "length": fmean(len(each["output"]) for each in own),
            "compared": found["compared"],
        }
        errors = {"win rate": found["standard_error"], "length-controlled": found.get("lc_standard_error")}
        within: dict[str, Interval] = {}
        for column, error in errors.items():
            value = row[column]
            if value is not None and error is not None and error == error:  # noqa: PLR0124  no error can be told from one output
                within[column] = (max(value - HALF_WIDTH * error, 0.0), min(value + HALF_WIDTH * error, 100.0))
        return row, within

    def _samples(self, reference: Sequence[Row], outputs: Mapping[str, Sequence[Row]]) -> list[dict[str, str]]:
        said = {name: {row["instruction"]: row["output"] for row in rows} for name, rows in outputs.items()}
        first = [row["instruction"] for row in reference[:NUM_SAMPLES]]
        return [{"prompt": each, **{name: texts.get(each, "") for name, texts in said.items()}} for each in first]


def read_outputs(place: str) -> list[Row]:
    """The rows of a file of outputs: a list, in JSON, of objects with `instruction`, `output` and `generator`."""
    try:
        rows = json.loads(read_text(place, ADVICE))
    except ValueError as error:
        raise ZkitError(f"{place}: not JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise ZkitError(f"{place}: should be a list of outputs; {ADVICE}")
    for number, row in enumerate(rows):
        missing = [key for key in ("instruction", "output", "generator") if not isinstance(row, dict) or key not in row]
        if missing:
            raise ZkitError(f"{place}: output {number} (from 0) has no `{missing[0]}`")
    return rows


def _write(path: Path, rows: Sequence[Row]) -> None:
    """A list in JSON, as alpaca_eval reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_suffix(".json"), json.dumps(rows, indent=1, ensure_ascii=False))

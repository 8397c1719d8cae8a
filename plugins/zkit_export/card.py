"""The model card of an export: the stage's own, with data, lineage, results, licence and parity."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zephyr_kit.facts import read_run
from zephyr_kit.markdown import table
from zephyr_kit.models import NamedModel
from zephyr_kit.preset import portions_of
from zephyr_kit.stages import TrainStage
from zephyr_kit.weights import local_file
from zephyr_kit.words import figure
from zkit_export.parity import HEAD, Parity, told

CARD = "README.md"
NUM_DIGITS = 16
"""Of a file's digest."""
LICENCE = re.compile(r"^license:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
FRONT = "---\n"


def write_card(folder: Path, model: NamedModel, parities: Sequence[Parity], *, origin: str, whole: bool) -> None:
    """Write `README.md` of an export, from that of the model if it has one."""
    front, body = _parted(model)
    licence = _licence(model)
    if whole:
        front = [line.replace("library_name: peft", "library_name: transformers") for line in front]
    if licence and not any(line.startswith("license:") for line in front):
        front.append(f"license: {licence}")
    if whole:
        body = body.replace("from peft import AutoPeftModelForCausalLM as Model", "from transformers import AutoModelForCausalLM as Model")
        body = re.sub(r"^The adapter belongs on its base.*\n\n", "", body, flags=re.MULTILINE)
    sections = [*_lineage(model), *_results(model), *_told_licence(licence), *_parity(parities, origin)]
    (folder / CARD).write_text(f"{FRONT}{chr(10).join(front)}\n{FRONT}\n{body.strip()}\n\n" + "\n".join(sections), "utf-8")


def _parted(model: NamedModel) -> tuple[list[str], str]:
    file = Path(model.place) / CARD
    text = file.read_text("utf-8") if file.is_file() else f"# {model.name}\n"
    if not text.startswith(FRONT):
        return ["tags:", "- zephyr-kit"], text
    front, _, body = text.removeprefix(FRONT).partition(f"\n{FRONT}")
    return front.splitlines(), body


def _lineage(model: NamedModel) -> Iterator[str]:
    """Every stage up to this one: what it was trained on, by which objective, and what stands for its content."""
    if model.run is None:
        return
    yield from ("## Lineage", "", f"- base: `{_base(model)}`")
    for stage in model.stages:
        parts = [f"objective `{stage.settings['objective.use']}`"] if isinstance(stage.task, TrainStage) else []
        parts += [f"data {portion.facts()['source']}" for each in portions_of(stage.task).values() for portion in each]
        files = sorted((_json(model.run / stage.name / "done.json") or {}).get("files", {}).items())
        parts += [f"`{name}` {digest[:NUM_DIGITS]}" for name, digest in files if name.endswith((".safetensors", ".jsonl"))]
        yield f"- stage `{stage.name}`: {'; '.join(parts) or 'measures'}"
    yield ""


def _results(model: NamedModel) -> Iterator[str]:
    """What the run's evaluations say."""
    if model.run is None:
        return
    for one in read_run(model.run, whole=False).evaluations:
        rows = [(name, *(figure(values.get(column)) for column in one.columns)) for name, values in one.rows.items()]
        yield from (f"## {one.title}", "", *table(("model", *one.columns), rows), "")
        yield from (*(f"- {name}: {meaning}" for name, meaning in one.columns.items()), "")


def _told_licence(licence: str | None) -> list[str]:
    base = f"The weights that training began with say `{licence}`." if licence else "The weights that training began with name no licence."
    return ["## Licence", "", f"{base} The data has licences of its own: see its sources under Lineage.", ""]


def _parity(parities: Sequence[Parity], origin: str) -> list[str]:
    words = f"Before and after, on {origin} and on the model's own greedy replies; log-probabilities in nats, KL from before to after."
    return ["## Parity", "", words, "", *table(HEAD, told(parities)), ""]


def _licence(model: NamedModel) -> str | None:
    """What the card of the base says; None if it has none, or says nothing."""
    base = _base(model)
    card = local_file(base, CARD, revision=None) if base else None
    text = card.read_text("utf-8", "replace") if card else ""
    front = text.removeprefix(FRONT).partition(f"\n{FRONT}")[0] if text.startswith(FRONT) else ""
    found = LICENCE.search(front)
    return found[1] if found else None


def _base(model: NamedModel) -> str:
    """What training began with."""
    weights = model.stages[0].settings.get("model.weights") if model.stages else getattr(model.backend, "weights", model.name)
    return str(weights or "random weights")


def _json(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text("utf-8")) if file.exists() else None

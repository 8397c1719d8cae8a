"""The model card of an export: the stage's own, with data, lineage, results, licence and parity."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_kit.facts import read_run
from zephyr_kit.markdown import table
from zephyr_kit.models import NamedModel
from zephyr_kit.preset import portions_of
from zephyr_kit.report.phrases import evaluated
from zephyr_kit.runs import StageFolder
from zephyr_kit.stages import TrainStage
from zephyr_kit.weights import local_file, looks_like_folder
from zkit_export.parity import HEAD, Parity, told

CARD = "README.md"
NUM_DIGITS = 16
"""Of a file's digest."""
LICENCE = re.compile(r"^license:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
BASE = re.compile(r"^base_model:[ \t]*(\S.*?)[ \t]*$")
FRONT = "---\n"


def write_card(folder: Path, model: NamedModel, parities: Sequence[Parity], *, origin: str, whole: bool) -> None:
    """Write `README.md` of an export, from that of the model if it has one; places on this machine are left out."""
    front, body = _parted(model)
    front = [line for line in front if not ((found := BASE.match(line)) and looks_like_folder(found[1]))]
    licence = _licence(model)
    if whole:
        front = [line.replace("library_name: peft", "library_name: transformers") for line in front]
    if licence and not any(line.startswith("license:") for line in front):
        front.append(f"license: {licence}")
    if whole:
        body = body.replace("from peft import AutoPeftModelForCausalLM as Model", "from transformers import AutoModelForCausalLM as Model")
        body = re.sub(r"^The adapter belongs on its base.*\n\n", "", body, flags=re.MULTILINE)
    sections = [*_lineage(model), *_results(model), *_told_licence(model, licence), *_parity(parities, origin)]
    told = _without_places(f"{body.strip()}\n\n" + "\n".join(sections), model)
    (folder / CARD).write_text(f"{FRONT}{chr(10).join(front)}\n{FRONT}\n{told}", "utf-8")


def _without_places(text: str, model: NamedModel) -> str:
    """Every path of this machine that settings name, of all stages of the run, by its last part alone."""
    settings = {} if model.run is None else read_run(model.run, most=2, whole=False).settings
    known = [getattr(model.backend, "weights", None), settings, *(stage.settings for stage in model.stages)]
    given = {place for place in _texts(known) if _is_of_this_machine(place)}
    for place in sorted(given, key=len, reverse=True):
        for written in (place, json.dumps(place)[1:-1]):  # settings are written as JSON
            text = text.replace(written, Path(place).name)
    return text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def _is_of_this_machine(value: str) -> bool:
    """Whether this is a path that says where somebody keeps things: `/think` is none, nor is `data/chat.jsonl`."""
    elsewhere = value.startswith(("~/", "./", "../")) or (value.startswith("/") and value.count("/") > 1)
    return elsewhere and Path(value).name not in ("", "..")


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
    yield from ("## Lineage", "", f"- base: {f'`{base}`' if (base := _base(model)) else 'random weights'}")
    for stage in model.stages:
        parts = [f"objective `{stage.settings['objective.use']}`"] if isinstance(stage.task, TrainStage) else []
        parts += [f"data {portion.facts()['source']}" for each in portions_of(stage.task).values() for portion in each]
        files = sorted((StageFolder(model.run / stage.name).done() or {}).get("files", {}).items())
        parts += [f"`{name}` {digest[:NUM_DIGITS]}" for name, digest in files if name.endswith((".safetensors", ".jsonl"))]
        yield f"- stage `{stage.name}`: {'; '.join(parts) or 'measures'}"
    yield ""


def _results(model: NamedModel) -> Iterator[str]:
    """What the run's evaluations say."""
    if model.run is None:
        return
    for one in read_run(model.run, whole=False).evaluations:
        yield from (f"## {one.title}", "", *table(*evaluated(one)), "")
        yield from (*(f"- {name}: {meaning}" for name, meaning in one.columns.items()), "")


def _told_licence(model: NamedModel, licence: str | None) -> list[str]:
    base = f"The weights that training began with say `{licence}`." if licence else "The weights that training began with name no licence."
    if _base(model) is None:
        base = "Training began with random weights, which have no licence."
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


def _base(model: NamedModel) -> str | None:
    """What training began with; None for random weights."""
    weights = model.stages[0].settings.get("model.weights") if model.stages else getattr(model.backend, "weights", model.name)
    return str(weights) if weights else None

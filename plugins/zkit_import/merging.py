"""Drafts of stages in their order as one preset: each starts from the one before, and sets only what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from zkit_import.drafting import Draft, Line
from zkit_import.said import Left

INHERITED = ("weights", "revision")
"""What a later stage finds, rather than sets."""


@dataclass(frozen=True)
class Section:
    """A table of the preset: its path, and its lines."""

    path: str
    lines: tuple[Line, ...]
    note: str = ""


def merge(drafts: Sequence[Draft], *, name: str, template: str = "") -> list[Section]:
    """The tables of the preset. `template` is where the first draft's own template stands, if it has one."""
    first = drafts[0]
    _keep_seed(drafts)
    files = ", then ".join(f"{PurePath(each.said.file).name} ({each.format})" for each in drafts)
    seed = first.said.facts["seed"]
    head = Section("", (Line("name", name), Line("description", f"Imported from {files}"), Line("seed", seed.value, seed.note)))
    model = [*first.model.values(), *([Line("template", template, "the file's own")] if template else [])]
    sections = [head, Section("model", tuple(model))]
    for number, stage in enumerate(_named(drafts)):
        sections += _sections(stage, drafts[number], drafts[:number])
    return sections


def _named(drafts: Sequence[Draft]) -> list[str]:
    """A name for each stage; the second of a kind is numbered."""
    kinds = [each.kind for each in drafts]
    return [kind if kinds[:number].count(kind) == 0 else f"{kind}-{kinds[:number].count(kind) + 1}" for number, kind in enumerate(kinds)]


def _sections(name: str, stage: Draft, before: Sequence[Draft]) -> list[Section]:
    path = f"stages.{name}"
    note = f"From {stage.said.file}."
    sections = [Section(path, tuple(stage.stage), note), Section(f"{path}.train", tuple(stage.train))]
    changed = _changed(stage, before) if before else ()
    return [*sections, *([Section(f"{path}.model", tuple(changed))] if changed else [])]


def _changed(stage: Draft, before: Sequence[Draft]) -> list[Line]:
    """What this stage sets of the model; an adapter is always its own."""
    _check_start(stage, before[-1])
    if any("lora" in each.model for each in before) and "lora" not in stage.model:
        weights = stage.said.facts["weights"]
        raise stage.said.error(
            weights.key, weights.line, "is trained with all weights, but the stage before leaves an adapter: import the two apart"
        )
    if stage.template:
        stage.said.leave("chat_template", "a run has one template, that of its first stage", near="model.template")
    if "quantize" in before[0].model and "quantize" not in stage.model:
        stage.said.leave("weights", "the base stays quantised, as in the first stage", near="model.quantize")
    own = {key: line for key, line in stage.model.items() if key not in INHERITED and line.value != _value(before[0], key)}
    own.pop("template", None) if not stage.said.gives("chat_template", "named_template") else None
    if "embedding_noise" in before[0].model and "embedding_noise" not in stage.model:
        own["embedding_noise"] = Line("embedding_noise", 0.0)
    if "lora" in stage.model:
        own["lora"] = replace(
            stage.model["lora"], note=stage.model["lora"].note or "an adapter of its own, on top of what the stage before left"
        )
    return list(own.values())


def _value(draft: Draft, key: str) -> object:
    return draft.model[key].value if key in draft.model else None


def _check_start(stage: Draft, before: Draft) -> None:
    """Tell of a stage that began with another model than the stage before leaves."""
    made = {PurePath(str(before.said.value(word))).name for word in ("folder", "hub") if word in before.said.facts}
    weights = stage.said.facts["weights"]
    same = PurePath(str(weights.value)).name in made
    reason = "is what the stage before leaves" if same else "the stage starts from what the one before leaves instead"
    stage.said.left.append(Left(weights.key, weights.line, weights.value, reason, matters=not same))


def _keep_seed(drafts: Sequence[Draft]) -> None:
    for each in drafts[1:]:
        if each.said.value("seed") != drafts[0].said.value("seed"):
            each.said.leave("seed", "a run has one seed, that of its first stage", near="seed")

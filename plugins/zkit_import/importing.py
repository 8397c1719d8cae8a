"""From files to a preset, and to what is left of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from zkit_import import axolotl, handbook, llama_factory, trl
from zkit_import.drafting import Draft, draft
from zkit_import.formats import Format, recognise
from zkit_import.kto import refuse_kto
from zkit_import.merging import merge
from zkit_import.preset_text import preset_text
from zkit_import.said import ConfigError, Said, hear
from zkit_import.yaml_file import read_yaml

FORMATS: tuple[Format, ...] = (trl.FORMAT, handbook.FORMAT, axolotl.FORMAT, llama_factory.FORMAT)


@dataclass(frozen=True)
class Imported:
    """What has come of the files."""

    text: str
    drafts: tuple[Draft, ...]
    template: tuple[Path, str] | None = None
    """A Jinja template to be written beside the preset."""


def import_files(
    files: Sequence[Path], *, named: str | None = None, stage: str | None = None, devices: int | None = None, out: Path | None = None
) -> Imported:
    """One stage for each file, in their order; raises ConfigError for what cannot be understood."""
    drafts = tuple(_read(file, named, stage, devices) for file in files)
    name = _name(files, out, drafts[-1].said)
    template = _template(drafts[0], out)
    text = preset_text(merge(drafts, name=name, template=str(template[0]) if template else ""))
    return Imported(text, drafts, template)


def _name(files: Sequence[Path], out: Path | None, last: Said) -> str:
    """That of the preset's file, of the folder that the last stage wrote to, or of all files together; never with their endings."""
    folder = PurePath(str(last.value("folder", ""))).name
    name = out.stem if out is not None else folder or "-".join(file.stem for file in files)
    return re.sub(r"(\.(ya?ml|toml)|[^A-Za-z0-9._-])+", "-", name).strip("._-") or "imported"


def _read(file: Path, named: str | None, stage: str | None, devices: int | None) -> Draft:
    table = read_yaml(file)
    form = next(each for each in FORMATS if each.name == named) if named else recognise(table, str(file), FORMATS)
    said = Said(str(file))
    hear(table, form.keys, said, known=form.data_keys)
    refuse_kto(said)
    kind = stage or form.kind(said)
    said.assume(form.defaults(kind, said), form.name)
    if "weights" not in said.facts:
        raise ConfigError(
            f"{file}: names no model ({next(key for key, rule in form.keys.items() if getattr(rule, 'to', '') == 'weights')})"
        )
    held = _held(form, table, said, kind)
    return draft(said, held, format=form.name, losses=form.losses, stage=kind, devices=devices)


def _held(form: Format, table: Any, said: Said, kind: str) -> Any:
    held = form.data(table, said, kind)
    if not held.train or not all(portion["path"] for portion in held.train):
        raise ConfigError(f"{said.file}: names no data set to train on")
    return held


def _template(first: Draft, out: Path | None) -> tuple[Path, str] | None:
    if not first.template:
        return None
    if out is None:
        first.said.leave(
            "chat_template", "is none of the templates at hand: with --out it is written beside the preset", near="model.template"
        )
        return None
    return out.with_suffix(".jinja"), first.template

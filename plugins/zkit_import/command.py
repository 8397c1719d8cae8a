"""`zkit import-config`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_kit import ZkitError

if TYPE_CHECKING:
    from zkit_import.drafting import Draft
    from zkit_import.said import Left

FORMATS = ("trl", "alignment-handbook", "axolotl", "llama-factory")


@click.command("import-config")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the preset here.  [default: print it]")
@click.option("--from", "named", type=click.Choice(FORMATS), help="Whose configuration it is.  [default: told by its keys]")
@click.option("--stage", type=click.Choice(["sft", "dpo"]), help="What the files train, where their keys do not tell.")
@click.option("--devices", type=click.IntRange(1), help="On how many devices it ran; a step is counted over all of them.  [default: 1]")
def import_config(files: tuple[Path, ...], out: Path | None, named: str | None, stage: str | None, devices: int | None) -> None:
    """Turn other programs' configurations into a preset.

    FILEs are YAML of trl, axolotl, LLaMA-Factory or the alignment-handbook, for SFT, DPO or IPO. Several, SFT first,
    become the stages of one preset. Whatever has no place in it is listed.
    """
    from zkit_import.importing import import_files

    if out is not None and out.exists():
        raise ZkitError(f"{out} is there already; choose another name, or remove it")
    imported = import_files(files, named=named, stage=stage, devices=devices, out=out)
    if out is None:
        click.echo(imported.text, nl=False)
    else:
        _write(out, imported.text)
        if imported.template is not None:
            _write(*imported.template)
    for draft in imported.drafts:
        for line in _told(draft):
            click.echo(line, err=out is None)
    if out is not None:
        click.echo(f"preset   {out}\nlook at it:  zkit presets show {out}\ntry it:      zkit run {out} --smoke")


def _told(draft: Draft) -> Iterator[str]:
    """What of a file is not in the preset: first what matters, then what does not, by reason."""
    matters = [left for left in draft.said.left if left.matters]
    by = "" if draft.said.gives("loss", "stage") else ", by its keys"
    yield f"{draft.said.file}: {draft.format}, {draft.kind}{by}"
    if matters:
        yield "  not carried over:"
    for left in matters:
        near = f" (nearest: {left.near})" if left.near else ""
        yield f"    {f'line {left.line}' if left.line else 'not in the file'}: {left.key} = {_short(left.value)}: {left.reason}{near}"
    rest = [left for left in draft.said.left if not left.matters]
    if rest:
        yield "  not needed:"
    for reason, keys in _by_reason(rest):
        yield f"    {', '.join(keys)}: {reason}"


def _by_reason(rest: Sequence[Left]) -> Iterator[tuple[str, list[str]]]:
    reasons = dict.fromkeys((left.reason, left.near) for left in rest)
    for reason, near in reasons:
        told = f"{reason} (nearest: {near})" if near else reason
        yield told, [left.key for left in rest if (left.reason, left.near) == (reason, near)]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _write(path: Path, text: str) -> None:
    from zephyr_kit.disk import put

    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.new")
    staging.write_text(text, "utf-8")
    put(staging, path)

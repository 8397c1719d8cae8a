"""C: damage is found, whatever it is, and inputs that have changed are shown."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from zephyr_kit.checkpoint import Checkpoints
from zephyr_kit.runs import StageFolder

from .job import Job, content, full, times
from .runner import finish

pytestmark = pytest.mark.timeout(7200)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_c1_any_bit_of_any_file(straight, tmp_path, tell):
    """Of checkpoints and of results; the file is named, and the checkpoint before is taken."""
    count, draw, found = times(300, 1000), random.Random(1), 0
    stage = StageFolder(Path(shutil.copytree(straight.output / "dpo", tmp_path / "dpo")))
    newest, key = stage.checkpoints / "step-00000012", stage.key()
    results = [stage.path / name for name in (stage.done() or {})["files"]]
    for _ in range(count):
        path = draw.choice([*sorted(newest.iterdir()), *results])
        bit = draw.randrange(8 * path.stat().st_size)
        flip(path, bit)
        if path.parent == newest:
            state, remarks = Checkpoints(stage.checkpoints, run=key).newest()
            named = path.name in remarks[0] or path.name == "manifest.json"
            found += state is not None and state.step == 11 and len(remarks) == 1 and named
        else:
            found += path.name in (stage.damage() or "")
        flip(path, bit)
    assert stage.damage() is None
    tell("C1", found, count)


def cut_at(share: float):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def zeros(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = bytes(len(data[middle : middle + 4096]))
    path.write_bytes(data)


DAMAGES = {
    **{f"cut at {number}/50": cut_at(number / 50) for number in range(50)},
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "zeros": zeros,
    "of the checkpoint before": lambda path: shutil.copy(path.parents[1] / "step-00000011" / path.name, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("/nowhere")),
    "text": lambda path: path.write_text("{}"),
    "one beside it": lambda path: path.with_name("more.json").write_text("{}"),
    "renamed": lambda path: path.rename(path.with_name("other.json")),
    "an empty folder with a higher number": lambda path: (path.parents[1] / "step-00000099").mkdir(),
    "a file with a higher number": lambda path: (path.parents[1] / "step-00000099").write_text(""),
}


def test_c2_every_damage_to_every_file(straight, tmp_path, tell):
    found = count = 0
    whole = straight.output / "dpo" / "checkpoints"
    for what, damage in DAMAGES.items():
        for name in sorted(path.name for path in (whole / "step-00000012").iterdir()):
            place = Path(shutil.copytree(whole, tmp_path / "copy"))
            damage(place / "step-00000012" / name)
            if content(place) != content(whole) or "higher" in what:  # some files of two checkpoints are the same
                state, remarks = Checkpoints(place).newest()
                right = state is not None and state.step == (12 if "higher" in what else 11) and len(remarks) == 1
                assert right, f"{what}: {name}: {remarks}"
                found += right
                count += 1
            shutil.rmtree(place)
    tell("C2", found, count)


def edited(text: str) -> str:
    return text.replace("sun", "son", 1)


def reordered(text: str) -> str:
    first, *rest = text.splitlines(keepends=True)
    return "".join([*rest, first])


def shortened(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[:-1])


SETS = {
    "seed=4": "seed",
    "stages.sft.train.learning_rate=2e-2": "stages.sft.train.learning_rate",
    "stages.sft.train.examples_per_step=5": "stages.sft.train.examples_per_step",
    "stages.sft.train.steps=13": "stages.sft.train.steps",
    "stages.sft.train.schedule=linear": "stages.sft.train.schedule",
    "stages.sft.train.warmup=0.3": "stages.sft.train.warmup",
    "stages.sft.train.clip=0.5": "stages.sft.train.clip",
    "stages.sft.train.optimizer=adamw_8bit": "stages.sft.train.optimizer.use",
    'stages.sft.train.optimizer={use = "adamw", weight_decay = 0.1}': "stages.sft.train.optimizer.weight_decay",
    "stages.sft.max_length=150": "stages.sft.max_length",
    "stages.sft.too_long=drop": "stages.sft.too_long",
    "stages.sft.data[0].limit=20": "stages.sft.data[0]",
    "stages.dpo.objective.beta=0.2": "stages.dpo.objective.beta",
    'stages.dpo.objective={use = "ipo"}': "stages.dpo.objective.use",
    "stages.dpo.model.lora.rank=3": "stages.dpo.model.lora.rank",
    "model.lora.dropout=0.2": "model.lora.dropout",
    "model.template=chatml": "model.template",
    "model.dtype=bfloat16": "model.dtype",
}
FILES = {
    "chat.jsonl edited": ("chat.jsonl", edited, "stages.sft.data[0]"),
    "chat.jsonl reordered": ("chat.jsonl", reordered, "stages.sft.data[0]"),
    "pairs.jsonl shortened": ("pairs.jsonl", shortened, "stages.dpo.data[0]"),
    "another tokenizer": ("model/tokenizer_config.json", lambda text: text.replace("{", '{"added": 1, ', 1), "model.weights"),
    "other weights": ("model/model.safetensors", None, "model.weights"),
}


@pytest.mark.parametrize("change", [*SETS, *FILES])
def test_c3_changed_inputs_are_shown_and_refused(job, straight, tmp_path, tell, change):
    """Side by side, with exit 3 and nothing touched; accepted by name, the run goes on and remembers."""
    folder = Path(shutil.copytree(job.folder, tmp_path / "job"))
    (folder / "preset.toml").write_text((folder / "preset.toml").read_text().replace(str(job.folder), str(folder)))
    output, mine = Path(shutil.copytree(straight.output, tmp_path / "run")), Job(folder)
    options = ("--set", change) if change in SETS else ()
    if change in FILES:
        name, edit, expected = FILES[change]
        if edit is None:
            flip(folder / name, 8 * ((folder / name).stat().st_size - 3))
        else:
            (folder / name).write_text(edit((folder / name).read_text()))
    else:
        expected = SETS[change]
    before = content(output)
    said = finish(mine, output, *options, code=3)
    row = next(line.split() for line in said.splitlines() if line.split()[:1] == [expected])
    shown = len(row) >= 3 and row[1] != row[2] and f"--accept {expected}" in said
    assert content(output) == before
    if full() or change in ("stages.dpo.objective.beta=0.2", "chat.jsonl edited"):
        finish(mine, output, *options, "--accept", "all")
        notes = json.loads((output / "run.json").read_text())
        shown = shown and any(note.get("accepted") == expected for note in notes) and any((output / "superseded").iterdir())
        assert finish(mine, output, *options).count("done before, nothing changed") == 2
    tell("C3", int(shown), 1, change)

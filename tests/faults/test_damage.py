"""C: damage is found, whatever it is, and inputs that have changed are shown."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from zephyr_kit.checkpoint import CheckpointError, Checkpoints, read
from zephyr_kit.corpus_files import verify
from zephyr_kit.fingerprint import file_digest, file_fingerprint
from zephyr_kit.records import DamagedError
from zephyr_kit.runs import StageFolder
from zephyr_kit.score_store import ScoreStore

from .job import Job, content, full, times
from .runner import finish

pytestmark = pytest.mark.timeout(7200)


NOT_READ_BACK = {
    ".lock": "is only locked",
    "README.md": "a model's card, which may be edited",
    "report.html": "made anew from the other files",
    "report.md": "made anew from the other files",
    "preset.toml": "for the reader and the report; what a stage depends on stands in its key",
    "settings.json": "for the reader and the report",
    "run.json": "when the stages were worked on: for the reader and the report",
    "data.json": "a copy of the corpus's ledger, for the report",
    "held_out.json": "the same of held-out data",
    "data.lengths.json": "for the report",
    "held_out.lengths.json": "for the report",
    "data.quarantine.jsonl": "a list for the reader",
    "held_out.quarantine.jsonl": "a list for the reader",
    "metrics.jsonl": "a line that is none any more is told; a digit that has become another is not found",
    "scorer.json": "says in words where scores come from",
    "answers.sqlite": "no answers are kept in this job",
}
"""On these no result rests."""


def flip(path: Path, bit: int) -> None:
    """As rot does: neither size nor time changes."""
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@dataclass(frozen=True)
class Kept:
    """A run's folder and its cache, and what reads their files."""

    run: Path
    cache: Path
    job: Job

    def readers(self) -> dict[Path, Callable[[Path], bool]]:
        """Of each file that is read back: whether what is wrong with it is found, or done without."""
        found: dict[Path, Callable[[Path], bool]] = {}
        for path in sorted(each for root in (self.run, self.cache) for each in root.rglob("*") if each.is_file()):
            reader = self._reader(path)
            assert (reader is None) == (path.name in NOT_READ_BACK), path
            if reader is not None and path.stat().st_size:
                found[path] = reader
        return found

    def _reader(self, path: Path) -> Callable[[Path], bool] | None:
        ways: dict[str, Callable[[Path], bool]] = {"corpora": self._corpus, "digests": self._digest, "references": self._scores}
        if path.is_relative_to(self.cache):
            return ways.get(path.relative_to(self.cache).parts[0]) if path.name not in NOT_READ_BACK else None
        if path.parent.name.startswith("step-"):
            return self._checkpoint
        if path.parent.name == "model":
            return None if path.name == "README.md" else self._result
        return self._stage if path.name in ("key.json", "done.json", "files.json") else None

    def _checkpoint(self, path: Path) -> bool:
        checkpoints, remarks = Checkpoints(path.parents[1]), ""
        try:
            read(path.parent)
        except CheckpointError as error:
            remarks = str(error)
        state, told = checkpoints.newest()
        step = {"step-00000012": 11, "step-00000011": 12}[path.parent.name]
        went = state is not None and state.step == step and len(told) == 12 - step
        return went and (path.name in remarks or (path.name == "manifest.json" and remarks != ""))

    def _result(self, path: Path) -> bool:
        return path.name in (StageFolder(path.parents[1]).damage() or "")

    def _stage(self, path: Path) -> bool:
        stage = StageFolder(path.parent)
        return refused(path, lambda: (stage.key(), stage.done(), stage.files_of("data[0]")))

    def _corpus(self, path: Path) -> bool:
        return refused(path, lambda: verify(path.parent))

    def _digest(self, path: Path) -> bool:
        files = [self.job.folder / name for name in ("chat.jsonl", "pairs.jsonl", "model/model.safetensors", "model/config.json")]
        return all(file_fingerprint(file) == file_digest(file) for file in files)

    def _scores(self, path: Path) -> bool:
        """None is another than it was; those that are not known are computed again."""
        before = scores(self.cache.with_name("whole") / path.relative_to(self.cache))
        store = ScoreStore(path.parents[1], json.loads((path.parent / "scorer.json").read_text())["scorer"], "")
        with closing(store):
            known = store.known(before)
        return store.folder == path.parent and all(before[key] == value for key, value in known.items())


def refused(path: Path, reading: Callable[[], object]) -> bool:
    """Whether it is, in words that name the file."""
    try:
        reading()
    except DamagedError as error:
        return str(error).startswith(f"{path}: damaged")
    return False


def scores(database: Path) -> dict[bytes, tuple[str, bytes]]:
    with closing(sqlite3.connect(database)) as connection:
        return {key: (dtype, values) for key, dtype, values in connection.execute("SELECT completion, dtype, logp FROM scores")}


def test_c1_any_bit_of_any_file(job, straight, tmp_path, tell, monkeypatch):
    """Of all that is read back of the run's folder and of the cache: found and named, and the checkpoint before is taken."""
    count, draw, found = times(300, 1000), random.Random(1), 0
    kept = Kept(*(Path(shutil.copytree(straight.output.with_name(name), tmp_path / name)) for name in ("run", "cache")), job)
    shutil.copytree(kept.cache / "references", tmp_path / "whole" / "references")
    monkeypatch.setenv("ZKIT_CACHE", str(kept.cache))
    readers = kept.readers()
    for _ in range(count):
        path = draw.choice(list(readers))
        data, bit = path.read_bytes(), draw.randrange(8 * path.stat().st_size)
        flip(path, bit)
        good = readers[path](path)
        if not good:
            print(f"{path}, bit {bit}")  # noqa: T201  shown where it fails
        found += good
        path.write_bytes(data)
    assert not any(readers[path](path) for path in readers if path.parent.parent.name not in ("references", "cache"))
    tell("C1", found, count, f"{len(readers)} files")


def test_rot_that_changes_no_time_is_found_in_a_result(straight, tmp_path, monkeypatch):
    """What is remembered of a file by its times says that it is as it was."""
    monkeypatch.setenv("ZKIT_CACHE", str(tmp_path / "cache"))
    stage = StageFolder(Path(shutil.copytree(straight.output / "dpo", tmp_path / "dpo")))
    weights = stage.model / "adapter_model.safetensors"
    before = file_digest(weights)
    flip(weights, 8 * (weights.stat().st_size - 3))
    with monkeypatch.context() as patch:
        patch.setattr("zephyr_kit.fingerprint.file_digest", lambda _: before)
        assert file_fingerprint(weights) == before
    assert file_fingerprint(weights) == before
    assert stage.damage() == "model/adapter_model.safetensors has changed"


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
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to a pipe": lambda path: (path.unlink(), os.mkfifo(path.parents[1] / "pipe"), path.symlink_to(path.parents[1] / "pipe")),
    "a link to itself elsewhere": lambda path: path.symlink_to(path.rename(path.parents[1] / path.name)),
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
            odd = not (place / "step-00000012" / name).is_file() or (place / "step-00000012" / name).is_symlink()
            if odd or content(place) != content(whole) or "higher" in what:  # some files of two checkpoints are the same
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
    shown = len(row) >= 3 and row[1] != row[2] and f"--accept {shlex.quote(expected)}" in said
    assert content(output) == before
    if full() or change in ("stages.dpo.objective.beta=0.2", "chat.jsonl edited"):
        finish(mine, output, *options, "--accept", "all")
        notes = json.loads((output / "run.json").read_text())
        shown = shown and any(note.get("accepted") == expected for note in notes) and any((output / "superseded").iterdir())
        assert finish(mine, output, *options).count("done before, nothing changed") == 2
    tell("C3", int(shown), 1, change)


def test_checkpoints_without_metrics_are_not_removed_when_an_input_changes(job, straight, tmp_path):
    output = Path(shutil.copytree(straight.output, tmp_path / "run"))
    (output / "dpo" / "metrics.jsonl").unlink()
    (output / "dpo" / "done.json").unlink()
    shutil.rmtree(output / "dpo" / "model")
    before = content(output)
    said = finish(job, output, "--set", "stages.dpo.objective.beta=0.2", code=3)
    assert "--accept stages.dpo.objective.beta" in said
    assert content(output) == before


@pytest.mark.parametrize("lost", [("key.json",), ("key.json", "done.json", "metrics.jsonl")])
def test_a_result_of_which_nobody_knows_what_it_was_made_from_is_not_taken(job, straight, tmp_path, lost):
    output = Path(shutil.copytree(straight.output, tmp_path / "run"))
    for name in lost:
        (output / "dpo" / name).unlink()
    before = content(output / "dpo")
    said = finish(job, output, "--set", "stages.dpo.objective.beta=0.2", code=1)
    assert f"{output / 'dpo' / 'key.json'}: missing" in said
    assert content(output / "dpo") == before


def test_a_damaged_end_costs_no_checkpoint(job, straight, tmp_path):
    output = Path(shutil.copytree(straight.output, tmp_path / "run"))
    flip(output / "dpo" / "done.json", 80)
    said = finish(job, output, code=1)
    assert f"{output / 'dpo' / 'done.json'}: damaged" in said
    assert "remove it, and the stage is ended anew, from its last checkpoint" in said
    (output / "dpo" / "done.json").unlink()
    assert "going on after step 12" in finish(job, output)
    assert job.result(output) == job.result(straight.output)

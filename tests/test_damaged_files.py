"""Every file that a run or the cache reads back: cut, empty, or no text, it is told by its name with what to do, or done without."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyr_kit import ZkitError
from zephyr_kit.answers import Answers
from zephyr_kit.checkpoint import Checkpoints, State
from zephyr_kit.corpus import Corpus
from zephyr_kit.facts import read_run
from zephyr_kit.fingerprint import file_fingerprint as digest
from zephyr_kit.gathered import GatheredRows
from zephyr_kit.heartbeat import Signs
from zephyr_kit.journal import Journal
from zephyr_kit.metrics import MetricLog
from zephyr_kit.models import find_model
from zephyr_kit.plugins import Plugins
from zephyr_kit.records import read_json, sealed
from zephyr_kit.remote_code import brings_code
from zephyr_kit.runs import StageFolder
from zephyr_kit.score_store import ScoreStore
from zephyr_kit.sieve import Sifted

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "binary": lambda _: b"\x00\xff\xfe\x80" * 8 + b"\n",
}
PAIR = '{"prompt": [{"role": "user", "content": "a"}], "completions": [[{"role": "assistant", "content": "b"}]], "scores": [1]}\n'


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def seal(path: Path, facts: dict[str, Any]) -> Path:
    return put(path, json.dumps(sealed(facts)))


def asked(folder: Path) -> Any:
    with closing(Answers(folder)) as answers:
        answers.put("why?", "so")
        return answers.get("why?")


def scored(folder: Path) -> Any:
    store = ScoreStore(folder, {"weights": 1}, "a test")
    with closing(store):
        store.put({b"1": ("float32", b"1234")})
        return store.known([b"1"])


def saved(folder: Path) -> Any:
    checkpoints = Checkpoints(folder)
    if not folder.exists():
        checkpoints.save(State(1, {}, {"a": 1}))
    state, remarks = checkpoints.newest()
    return dict(state.facts) if state else remarks


def logged(path: Path) -> Any:
    rewound = MetricLog(path).rewind(2)
    return rewound.told() or list(MetricLog(path).lines())


# Each: the file, how it is made, and what reads it back.
READ: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = {
    "the journal": ("run.json", lambda p: put(p, '[{"stage": "sft", "command": ["zkit"]}]'), lambda p: Journal(p).notes()),
    "a stage's key": ("sft/key.json", lambda p: seal(p, {"seed": 1}), lambda p: StageFolder(p.parent).key()),
    "a stage's end": ("sft/done.json", lambda p: seal(p, {"steps": 2}), lambda p: StageFolder(p.parent).done()),
    "a stage's files": ("sft/files.json", lambda p: seal(p, {"data": {"x": "1"}}), lambda p: StageFolder(p.parent).files_of("data")),
    "metrics": ("sft/metrics.jsonl", lambda p: put(p, '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n'), logged),
    "rows that were gathered": ("feedback/data/train.jsonl", lambda p: put(p, PAIR), lambda p: len(list(GatheredRows("x", p).rows()))),
    "a run's preset": ("preset.toml", lambda p: put(p, 'name = "a"\n[stages.one]\nx = 1\n'), lambda p: read_run(p.parent).name),
    "a corpus's ledger": ("ledger.json", lambda p: seal(p, {"portions": [], "files": {}}), lambda p: Corpus(p.parent).ledger),
    "a corpus": ("ends.npy", lambda p: np.save(p, np.arange(9)), lambda p: Corpus(p.parent).ends.tolist()),
    "a sieve's ledger": ("ledger.json", lambda p: seal(p, {"read": 1}), lambda p: Sifted(p.parent).ledger),
    "an adapter's settings": ("a/adapter_config.json", lambda p: put(p, '{"r": 8}'), lambda p: find_model(str(p.parent), Plugins()).name),
    "a model's settings": ("m/config.json", lambda p: put(p, '{"dtype": "float32"}'), lambda p: brings_code(p.parent)),
    "an evaluation": ("evaluation.json", lambda p: put(p, '{"key": 1}'), lambda p: read_json(p, "remove it")),
    "a digest": ("cache/digests/*", lambda p: digest(put(p.parents[2] / "x", "x")), lambda p: digest(p.parents[2] / "x")),
    "answers": ("answers.sqlite", lambda p: asked(p.parent), lambda p: asked(p.parent)),
    "scores": ("*/scores.sqlite", lambda p: scored(p.parents[1]), lambda p: scored(p.parents[1])),
    "who scored": ("*/scorer.json", lambda p: scored(p.parents[1]), lambda p: scored(p.parents[1])),
    "a checkpoint": ("c/step-00000001/manifest.json", lambda p: saved(p.parents[1]), lambda p: saved(p.parents[1])),
    "a sign of life": ("0.beat", lambda p: put(p, "12 sft"), lambda p: Signs(p.parent, 0).step()),
    "a cause": ("0.failed", lambda p: Signs(p.parent, 0).note_failure("why"), lambda p: Signs(p.parent, 0).failure()),
}
DONE_WITHOUT = ("metrics", "a checkpoint", "rows that were gathered", "a run's preset", "a sign of life", "a cause")
"""What is told otherwise, or found to be missing by whoever reads it."""


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", READ)
def test_a_damaged_file_is_told_or_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, damage: str) -> None:
    monkeypatch.setenv("ZKIT_CACHE", str(tmp_path / "cache"))
    name, make, read = READ[what]
    make(tmp_path / name)
    (file,) = tmp_path.glob(name)
    sound = read(file)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    told = ""
    try:
        assert read(file) == sound or what in DONE_WITHOUT
    except ZkitError as error:
        told = str(error)
    assert not told or (told.startswith(str(file)) and "; " in told), "which file, and what to do"


def test_what_metrics_have_lost_is_told_and_mended(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.append({"step": step, "loss": 1.0} for step in range(1, 10))
    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join([*lines[:2], '{"step": 3, "lo', "[]", *lines[4:6], "\0\1"]) + "\n")
    with pytest.raises(ZkitError, match=r"metrics\.jsonl:3: damaged"):
        list(log.lines())
    found = log.rewind(8)
    assert found.told() == "3 damaged lines removed, no line of step 3–4, 7–8"
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2, 5, 6]
    assert log.rewind(2).told() == ""


def fate_of(file: Path, sound: Any) -> str:
    try:
        with closing(Answers(file.parent)) as answers:
            found = answers.get("why?")
    except ZkitError as error:
        return str(error).partition("(")[0].removeprefix(f"{file}: ").strip()
    return {None: "not known", repr(sound): "known"}[found and repr(found)]


def test_a_bit_that_flips_in_what_was_answered_never_makes_another_answer(tmp_path: Path) -> None:
    with closing(Answers(tmp_path / "answers")) as answers:
        answers.put("why?", {"text": "because it is so", "costs": 0.25})
        sound = answers.get("why?")
    (file,) = (tmp_path / "answers").iterdir()
    data, draw, fates = file.read_bytes(), random.Random(0), set()
    for _ in range(150):
        bad = bytearray(data)
        bad[draw.choice([place for place, byte in enumerate(data) if byte])] ^= 1 << draw.randrange(8)
        file.write_bytes(bad)
        fates.add(fate_of(file, sound))
        for left in (tmp_path / "answers").glob("*-*"):
            left.unlink()
    assert fates == {"known", "not known", "damaged"}, "also what is of no importance, such as a counter of SQLite's"

"""Data sets that were prepared to do harm: nothing of them runs, and nothing outside their folder is read or trained on."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from hostile import CODE, MARK, Payload
from zkit_sources.contained import check_card
from zkit_sources.hub import Hub

from zephyr_kit import ZkitError
from zephyr_kit.artifacts import ArtifactError
from zephyr_kit.example import Example

ROW = json.dumps({"text": "secret"}) + "\n"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(ROW)
    return folder


def card(data_files: str) -> Callable[[Path, Path], object]:
    text = f"---\nconfigs:\n- config_name: default\n  data_files: {data_files}\n---\n"
    return lambda folder, outside: (folder / "README.md").write_text(text.replace("OUT", str(outside)))


def saved(folder: Path, outside: Path) -> None:
    datasets.Dataset.from_dict({"text": ["secret"]}).save_to_disk(outside / "saved")
    shutil.copytree(outside / "saved", folder, dirs_exist_ok=True)
    facts = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**facts, "_data_files": [{"filename": "../outside/saved/data-00000-of-00001.arrow"}]}))


HOSTILE: dict[str, Callable[[Path, Path], object]] = {
    "a pickle": lambda folder, outside: (folder / "data.pkl").write_bytes(pickle.dumps(Payload(outside))),
    "a pickle that the card names": lambda folder, outside: (
        (folder / "data.pkl").write_bytes(pickle.dumps(Payload(outside))),
        card("data.pkl")(folder, outside),
    ),
    "a script": lambda folder, outside: (folder / "data.py").write_text(CODE.format(place=str(outside / MARK))),
    "a link": lambda folder, outside: (folder / "rows.jsonl").symlink_to(outside / "rows.jsonl"),
    "a linked folder": lambda folder, outside: (folder / "data").symlink_to(outside),
    "a link to a device": lambda folder, _: (folder / "rows.jsonl").symlink_to("/dev/zero"),
    "a FIFO": lambda folder, _: os.mkfifo(folder / "rows.jsonl"),
    "a card that names what is above": card("../outside/rows.jsonl"),
    "a card that names what is elsewhere": card("OUT/rows.jsonl"),
    "a card that names a pattern": card("/**/rows.jsonl"),
    "a card that names the network": card("https://example.invalid/rows.jsonl"),
    "a card that names an archive": card("zip://rows.jsonl::../outside/a.zip"),
    "a card with splits": card("\n  - split: train\n    path: ['a.jsonl', '../outside/rows.jsonl']"),
    "a card that is none": lambda folder, _: (folder / "README.md").write_text("---\n!!python/object/apply:os.system ['touch x']\n---\n"),
    "a saved data set": saved,
    "splits elsewhere": lambda folder, _: (folder / "dataset_dict.json").write_text('{"splits": ["../outside/saved"]}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(tmp_path: Path, outside: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    HOSTILE[name](folder, outside)
    with pytest.raises(ZkitError):
        list(Hub(str(folder)).rows())
    assert not (outside / MARK).exists()


def test_an_honest_card_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "rows.jsonl").write_text(ROW)
    card("part/*.jsonl")(folder, tmp_path)
    (row,) = Hub(str(folder)).rows()
    assert isinstance(row, Example)


def test_a_card_of_what_is_yet_to_be_fetched_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card("/etc/passwd")(tmp_path, tmp_path)
    monkeypatch.setattr("zkit_sources.hub.card_of", lambda *_: tmp_path / "README.md")
    with pytest.raises(ArtifactError, match=r"README.md: names '/etc/passwd', which is none of its own files"):
        list(Hub("some/data").rows())
    check_card(tmp_path / "no card")

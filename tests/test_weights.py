"""Where models are, and what stands for their content."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from zkit_attentions.segments import Segments
from zkit_feedback.reward import RewardModel
from zkit_mistral.backend import Mistral

from zephyr_kit.weights import commit_of, place_of, weights_fingerprint, weights_problems

NAME, OLD, NEW = "owner/name", "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def download(hub: Path, commit: str, branch: str = "main") -> None:
    """What a download leaves in the cache."""
    folder = hub / f"models--{NAME.replace('/', '--')}"
    for file, text in ((folder / "snapshots" / commit / "config.json", "{}"), (folder / "refs" / branch, commit)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_a_repository_is_known_by_the_commit_that_is_on_this_machine(hub: Path) -> None:
    assert weights_fingerprint(NAME, None) == [NAME, None]
    download(hub, OLD)
    assert weights_fingerprint(NAME, None) == [NAME, OLD]
    download(hub, NEW)
    assert weights_fingerprint(NAME, None) == weights_fingerprint(NAME, "main") == [NAME, NEW]
    assert weights_fingerprint(NAME, OLD) == [NAME, OLD]
    model = Mistral(weights=NAME, attention=Segments())
    assert RewardModel(weights=NAME).fingerprint()["weights"] == model.fingerprint()["weights"] == [NAME, NEW]
    assert model.commit == NEW


def test_what_is_not_downloaded_yet_has_the_commit_that_will_be(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a stage has the same key before the download and after."""
    asked: list[str] = []

    def metadata(url: str, **_: Any) -> Any:
        asked.append(url)
        return SimpleNamespace(commit_hash=NEW)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", metadata)
    assert commit_of(NAME, "v1") == "v1", "the hub is switched off"
    assert not asked
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    before = weights_fingerprint(NAME, None)
    assert (before, len(asked)) == ([NAME, NEW], 1)
    download(hub, NEW)
    assert (weights_fingerprint(NAME, None), len(asked)) == (before, 1)


def test_a_folder_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "model"
    folder.mkdir()
    assert "holds no config.json" in weights_problems("~/model", None)[0]
    (folder / "config.json").write_text("{}")
    (folder / "weights.bin").write_bytes(b"x")
    (problem,) = weights_problems("~/model", None, table="[model] ")
    assert problem.startswith('[model] weights = "~/model": holds no weights (*.safetensors) (weights.bin is a pickle')
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    assert weights_problems("~/model", None) == []
    assert place_of("~/model") == str(folder)
    before = weights_fingerprint("~/model", None)
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    assert weights_fingerprint(str(folder), None) != before
    assert weights_problems("~/model", "v1") == ['revision = "v1" is one of a repository\'s, but weights = "~/model" is a folder']
    assert commit_of("~/model", None) is None

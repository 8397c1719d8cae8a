"""Models that were prepared to do harm: no code of theirs runs, nothing outside their folder is read, and they are refused at once."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from audit import events
from hostile import IGNORED, MARK, REFUSED, both, fifo, linked, pickled, removed, settings
from policies import CPU, backend, load, scores, shake
from tiny import write_model
from zkit_mistral.backend import Lora

from zephyr_kit import ZkitError
from zephyr_kit.artifacts import ArtifactError, check_folder
from zephyr_kit.checkpoint import Checkpoints, State
from zephyr_kit.protocols import Start
from zephyr_kit.weights import weights_problems

SECONDS = 5
GIB = 2**30

Prepare = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture
def prepare(tmp_path: Path, model: Path) -> Prepare:
    """A copy of a good folder, and one outside of it with files of the same names."""

    def copies(good: Path = model) -> tuple[Path, Path]:
        folder, outside = tmp_path / "model", tmp_path / "outside"
        for place in (folder, outside):
            shutil.copytree(good, place)
        (outside / "chat_template.jinja").write_text("secret")
        (outside / "tokenizer.1.json").write_bytes(b"{}")
        return folder, outside

    return copies


@contextmanager
def held_to_limits(outside: Path) -> Iterator[None]:
    """Five seconds, a GiB, no file from outside, no shell and no network; and nothing is asked of whoever sits at the terminal."""

    def out_of_time(*_: Any) -> None:
        raise TimeoutError("too slow")

    before, size = signal.signal(signal.SIGALRM, out_of_time), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(SECONDS)
    try:
        with events("open", "os.system", "subprocess.Popen", "socket.connect", "builtins.input") as found:
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    opened = [str(arguments[0]) for event, arguments in found if event == "open"]
    assert not [path for path in opened if Path(os.fsdecode(path)).resolve().is_relative_to(outside)]
    assert not [path for path in opened if path in ("/etc/passwd", "/dev/zero") or path.startswith("/proc/self/environ")]
    assert not [event for event, _ in found if event != "open"]
    assert not (outside / MARK).exists()
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size) < GIB


def test_there_are_enough_of_them() -> None:
    assert len(REFUSED) + len(IGNORED) + len(ADAPTERS) >= 120


@pytest.mark.parametrize("name", REFUSED)
def test_refused(prepare: Prepare, name: str) -> None:
    folder, outside = prepare()
    REFUSED[name](folder, outside)
    bad = backend(folder, template="auto")
    with held_to_limits(outside):
        problems = bad.problems(CPU, start=Start())
        # What needs a look at the libraries' tables, or into a large file, is told by who loads it.
        assert problems or name.startswith("code ") or name == "tokenizer.json is deep"
        with pytest.raises(ZkitError):
            bad.load(CPU, start=Start(), train=False)
        if name != "only a pickle" and not name.startswith("code "):
            with pytest.raises(ZkitError):
                bad.tokenizer(Start())


@pytest.mark.parametrize("name", IGNORED)
def test_ignored(prepare: Prepare, model: Path, name: str) -> None:
    folder, outside = prepare()
    IGNORED[name](folder, outside)
    with held_to_limits(outside):
        assert not backend(folder).problems(CPU, start=Start())
        found = scores(load(folder, train=False))
    assert torch.equal(found, scores(load(model, train=False)))


# Adapters

adapter = settings
ADAPTERS = {
    "imports a module": adapter("adapter_config.json", megatron_config={"a": 1}, megatron_core="evil"),
    "imports another": adapter("adapter_config.json", auto_mapping={"base_model_class": "system", "parent_library": "os"}),
    "fetches a tokenizer with code": adapter(
        "adapter_config.json", peft_type="PROMPT_TUNING", tokenizer_name_or_path="evil/repo", tokenizer_kwargs={"trust_remote_code": True}
    ),
    "trusts": adapter("adapter_config.json", trust_remote_code=True),
    "changes the base": adapter("adapter_config.json", init_lora_weights="pissa"),
    "reads a cache": adapter("adapter_config.json", corda_config={"cache_file": "OUT/x.pt"}),
    "multiplies the layers": adapter("adapter_config.json", layer_replication=[[0, 10**9]]),
    "is a pattern": adapter("adapter_config.json", target_modules="(a+)+$"),
    "is unknown": adapter("adapter_config.json", peft_type="EVIL"),
    "trains more": adapter("adapter_config.json", modules_to_save=["lm_head"]),
    "has another base": adapter("adapter_config.json", base_model_name_or_path="evil/repo"),
    "has a base above": adapter("adapter_config.json", base_model_name_or_path="../outside/nothing"),
    "has passwords for a base": adapter("adapter_config.json", base_model_name_or_path="/etc"),
    "is only a pickle": both(removed("adapter_model.safetensors"), pickled("adapter_model.bin")),
    "is a pickle": pickled("adapter_model.safetensors"),
    "leads out": linked("adapter_model.safetensors", "OUT/adapter_model.safetensors"),
    "is a FIFO": fifo("adapter_model.safetensors"),
    "has a FIFO": fifo("adapter_config.json"),
    "has a configuration that leads out": linked("adapter_config.json", "OUT/adapter_config.json"),
}


@pytest.fixture(scope="module")
def adapted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "model"
    policy = load(model, lora=Lora(rank=2))
    shake(policy)
    policy.save(folder)
    return folder


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("train", [True, False])
def test_adapters_are_refused(prepare: Prepare, model: Path, adapted: Path, name: str, train: bool) -> None:
    folder, outside = prepare(adapted)
    ADAPTERS[name](folder, outside)
    with held_to_limits(outside), pytest.raises(ZkitError):
        load(model, Start(folder), lora=Lora(rank=2), train=train)


def test_an_adapter_of_ours_is_read(model: Path, adapted: Path) -> None:
    assert load(model, Start(adapted), lora=Lora(rank=2), train=False).adapters is not None


# Checkpoints


@pytest.mark.parametrize("name", ["optimizer.pt", ".metadata", "state.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_with_a_pickle_is_not_used(tmp_path: Path, name: str) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    place = checkpoints.save(State(1, {"a": torch.zeros(2)}, {}))
    pickled(name)(place, tmp_path)
    state, remarks = checkpoints.newest()
    assert state is None
    assert remarks
    assert not (tmp_path / MARK).exists()


# The hub's cache, whose snapshots are links to ../../blobs


def as_cached(model: Path, cache: Path, name: str = "owner/name", commit: str = "a" * 40) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for file in model.iterdir():
        shutil.copyfile(file, repository / "blobs" / f"{file.name}-blob")
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}-blob")
    return snapshot


def test_the_links_of_the_hubs_cache_are_followed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = as_cached(model, tmp_path / "hub")
    assert weights_problems("owner/name", None) == []
    expected = scores(load(model, train=False))
    assert torch.equal(scores(load(Path("owner/name"), train=False)), expected)
    assert torch.equal(scores(load(snapshot, train=False)), expected)
    (snapshot / "generation_config.json").unlink()
    (snapshot / "generation_config.json").symlink_to("../../../models--owner--name/refs/main")
    assert "leads out of the folder" in weights_problems("owner/name", None)[0]
    with pytest.raises(ArtifactError, match="leads out of the folder"):
        load(Path("owner/name"), train=False)


def test_what_is_wrong_is_told_with_the_file(prepare: Prepare) -> None:
    folder, outside = prepare()
    REFUSED["weight map above"](folder, outside)
    with pytest.raises(ArtifactError) as caught:
        check_folder(folder)
    file = folder / "model.safetensors.index.json"
    assert str(caught.value) == f"{file}: weight_map names '../outside/model.safetensors', which is no safetensors file of the folder"


# Code that a preset names

CODE = """
from pathlib import Path
from transformers import MistralConfig, MistralForCausalLM
Path({place!r}).touch()

class Config(MistralConfig):
    model_type = "evil"

class Model(MistralForCausalLM):
    config_class = Config
"""
NAMED = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
COMMIT = "a" * 40


@pytest.fixture
def coded(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in the hub's cache whose model needs code of its own; gives the file that appears when it has run."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    folder = tmp_path / "coded"
    shutil.copytree(model, folder)
    mark = tmp_path / MARK
    (folder / "modeling_evil.py").write_text(CODE.format(place=str(mark)))
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, "model_type": "evil", "auto_map": NAMED}))
    as_cached(folder, tmp_path / "hub")
    return mark


def test_code_runs_only_where_the_preset_names_repository_and_commit(
    coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever sits there says yes
    for options in ({}, {"remote_code": f"other/name@{COMMIT}"}):
        with pytest.raises(ZkitError):
            load(Path("owner/name"), train=False, **options)
        assert not coded.exists()
    with pytest.raises(ZkitError):
        load(tmp_path / "coded", train=False, remote_code=f"owner/name@{COMMIT}")
    assert not coded.exists(), "a folder has no commit"
    with pytest.raises(ZkitError):
        load(Path("owner/name"), train=False, remote_code=f"owner/name@{'b' * 40}")
    assert not coded.exists(), "another commit is not there"
    policy = load(Path("owner/name"), train=False, remote_code=f"owner/name@{COMMIT}")
    assert coded.exists()
    policy.save(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.py")), "code stays where a commit says which it is"
    again = load(Path("owner/name"), Start(tmp_path / "saved"), train=False, remote_code=f"owner/name@{COMMIT}")
    assert torch.equal(scores(again), scores(policy))


LESS = ("owner/name", "owner/name@main", f"owner/name@{'a' * 39}", f"owner/name@{'A' * 40}", f"name@{COMMIT}", "yes", "")


@pytest.mark.parametrize("written", LESS)
def test_less_than_a_commit_is_refused(model: Path, written: str) -> None:
    with pytest.raises(ValueError, match="all 40 digits of the commit"):
        backend(model, remote_code=written)


def test_code_that_is_not_there_is_not_named(model: Path) -> None:
    with pytest.raises(ZkitError, match="brings no code"):
        load(model, train=False, remote_code=f"owner/name@{COMMIT}")

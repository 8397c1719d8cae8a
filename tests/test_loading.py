"""The `[model]` table of `mistral`: what is honoured, what is refused, and that what is saved comes back."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import CPU, PAIRS, backend, load, scores, shake, trained
from tiny import logits_logp, write_model
from zkit_attentions.segments import Segments
from zkit_mistral.backend import Lora, Mistral, Quantize, Scratch
from zkit_mistral.policy import bare
from zkit_mistral.quiet import quiet

from zephyr_kit import ZkitError
from zephyr_kit.example import Message
from zephyr_kit.protocols import Start


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def problems(model: Mistral, start: Start | None = None) -> str:
    return "\n".join(model.problems(CPU, start=start or Start()))


def scratch(**options: Any) -> Mistral:
    return Mistral(scratch=Scratch((), width=32, layers=1, mlp_width=32), attention=Segments(), **options)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_full_weights_come_back(weights: Path, tmp_path: Path, dtype: str) -> None:
    policy = load(weights, dtype=dtype)
    shake(policy)
    policy.save(tmp_path / "out")
    assert torch.equal(scores(load(weights, Start(tmp_path / "out"), dtype=dtype, train=False)), scores(policy))
    assert torch.equal(scores(load(tmp_path / "out", dtype=dtype)), scores(policy))


def test_full_weights_come_back_in_transformers_alone(weights: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = load(weights)
    shake(policy)
    policy.save(tmp_path)
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert scores(policy).tolist() == pytest.approx(logits_logp(theirs, PAIRS), abs=1e-4)
    tokens = AutoTokenizer.from_pretrained(tmp_path)
    assert tokens.chat_template == policy.tokenizer.tokens.chat_template
    assert theirs.generation_config.eos_token_id == policy.tokenizer.stop_ids


# What a later stage sets for itself.

QUESTION = [Message("user", "who?")]


@pytest.fixture(scope="module")
def earlier(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a stage left that had a system turn."""
    folder = tmp_path_factory.mktemp("run") / "sft"
    load(weights, template="zephyr", system="Be old.").save(folder)
    return folder


@pytest.mark.parametrize(
    ("template", "system", "changed", "expected"),
    [
        ("chatml", "Be new.", (), "<s><|system|>\nBe old.</s>\n<|user|>\nwho?</s>\n<|assistant|>\n"),
        ("chatml", "Be old.", ("template",), "<s><|im_start|>system\nBe old.</s>\n<|im_start|>user\nwho?</s>\n<|im_start|>assistant\n"),
        ("chatml", None, ("template",), "<s><|im_start|>user\nwho?</s>\n<|im_start|>assistant\n"),
        ("zephyr", "Be new.", ("system",), "<s><|system|>\nBe new.</s>\n<|user|>\nwho?</s>\n<|assistant|>\n"),
        ("auto", "Be new.", ("system",), "<s><|system|>\nBe new.</s>\n<|user|>\nwho?</s>\n<|assistant|>\n"),
        ("auto", "Be old.", ("template",), "<s><|system|>\nBe old.</s>\n<|user|>\nwho?</s>\n<|assistant|>\n"),
    ],
)
def test_a_later_stage_writes_as_it_says(
    weights: Path, earlier: Path, tmp_path: Path, template: str, system: str | None, changed: tuple[str, ...], expected: str
) -> None:
    later = backend(weights, template=template, system=system)
    start = Start(earlier, frozenset(changed))
    assert later.tokenizer(start).template.opening(QUESTION) == expected
    later.load(CPU, start=start, train=True).save(tmp_path)
    assert later.tokenizer(Start(tmp_path)).template.opening(QUESTION) == expected, "and so does the one after it"


@pytest.mark.parametrize("key", ["weights", "revision", "scratch"])
def test_a_later_stage_has_no_other_origin(weights: Path, earlier: Path, key: str) -> None:
    start = Start(earlier, frozenset({key, "lora"}))
    assert f"model.{key} in a later stage" in problems(backend(weights), start)
    with pytest.raises(ZkitError, match=f"model.{key} in a later stage"):
        load(weights, start)
    assert not problems(backend(weights), Start(changed=frozenset({key}))), "the first stage has one"


def test_the_key_of_a_stage_holds_the_words_of_its_template(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    found = []
    for text in ("one", "other", "one"):
        file.write_text(text, "utf-8")
        found.append(backend(weights, template=str(file)).fingerprint())
    assert found[0] == found[2] != found[1]


# What cannot be honoured.


def test_keys_that_would_be_passed_over_are_refused(weights: Path) -> None:
    for key, value in (("kind", "fp4"), ("kind", "nf4"), ("double", False), ("double", True)):
        with pytest.raises(ValueError, match=f"`{key}` = .* is for 4 bits"):
            Quantize(bits=8, **{key: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`revision` = .*scratch"):
        scratch(revision="v1")
    assert 'revision = "v1"' in problems(backend(weights, revision="v1"))
    with pytest.raises(ZkitError, match='revision = "v1"'):
        load(weights, revision="v1")


def test_an_adapter_on_random_weights_is_refused(earlier: Path) -> None:
    assert "random weights below the adapter" in problems(scratch(lora=Lora()))
    with pytest.raises(ZkitError, match=r"set `model\.lora` in a later stage"):
        scratch(lora=Lora()).load(CPU, start=Start(), train=True)
    assert not problems(scratch(lora=Lora()), Start(earlier))
    assert trained(scratch(lora=Lora(), dtype="float32").load(CPU, start=Start(earlier, frozenset({"lora"})), train=True))


# Where things are.


def test_a_home_folder_is_found(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(weights.parent))
    home = f"~/{weights.name}"
    model = Mistral(weights=home, dtype="float32", template="zephyr", attention=Segments())
    assert not problems(model)
    assert model.fingerprint()["weights"] == backend(weights).fingerprint()["weights"]
    assert torch.equal(scores(model.load(CPU, start=Start(), train=False)), scores(load(weights)))
    assert str(weights.parent / "nowhere") in problems(Mistral(weights="~/nowhere", attention=Segments()))


def test_an_adapter_finds_the_stage_below_it_from_anywhere(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load(weights).save(Path("run/sft"))
    policy = load(weights, Start(Path("run/sft"), frozenset({"lora"})), lora=Lora(rank=2))
    shake(policy)
    policy.save(Path("run/dpo"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    left = Start(tmp_path / "run" / "dpo")
    assert torch.equal(scores(load(weights, left, lora=Lora(rank=2), train=False)), scores(policy))

    (tmp_path / "run").rename(tmp_path / "moved")
    left = Start(tmp_path / "moved" / "dpo")
    with pytest.raises(ZkitError, match=re.escape(str(tmp_path / "run" / "sft"))):
        load(weights, left, lora=Lora(rank=2), train=False)


def test_a_slow_name_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go, gone = threading.Event(), threading.Event()

    def slow(*_: Any, **__: Any) -> Any:
        go.wait(200)
        gone.set()
        raise OSError("no such name")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("socket.getaddrinfo", slow)
    monkeypatch.setattr("zephyr_kit.weights.SECONDS", 0.3)
    found = problems(Mistral(weights="some-owner/some-model", attention=Segments()))
    assert not gone.is_set()
    assert "the hub does not answer" in found
    assert "hf download some-owner/some-model" in found
    go.set()
    assert gone.wait(200), "the name server was asked"


# Miniatures.


@pytest.mark.parametrize("architecture", ["Mistral", "Llama", "Qwen2", "Qwen3", "Gemma", "Gemma3Text"])
def test_a_miniature_has_the_architecture_of_the_configuration(tmp_path: Path, architecture: str) -> None:
    """A few numbers are smaller; the kinds of layers are still there."""
    import transformers

    config = getattr(transformers, f"{architecture}Config")()
    config.save_pretrained(tmp_path / "whole")
    model = Mistral(weights=str(tmp_path / "whole"), dtype="float32", attention=Segments()).miniature(tmp_path)
    policy = model.load(CPU, start=Start(), train=True)
    shrunken = bare(policy.module.model).config
    assert shrunken.model_type == config.model_type
    assert shrunken.num_hidden_layers == 2
    assert set(getattr(shrunken, "layer_types", None) or ()) == set(getattr(config, "layer_types", None) or ())
    assert torch.isfinite(scores(policy)).all()


def test_silence_ends() -> None:
    talker = logging.getLogger("bitsandbytes")
    before = talker.level
    with quiet():
        assert talker.level == logging.ERROR
    assert talker.level == before

"""The run's own model, any model of a backend, and vLLM, as completers."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from policies import backend
from tiny import write_model
from toys import bench as plain_bench
from zkit_feedback import zkit_completers
from zkit_feedback.model import ModelCompleter
from zkit_feedback.own import OwnCompleter
from zkit_feedback.scripted import ScriptedCompleter
from zkit_feedback.vllm import VllmCompleter
from zkit_mistral.backend import Mistral

from zephyr_kit import ZkitError
from zephyr_kit.answers import Answers
from zephyr_kit.example import Message
from zephyr_kit.protocols import Bench, Failure, Policy, Reply, Request, Sampling, Start
from zephyr_kit.replying import replies_of
from zephyr_kit.testing import CompleterLaws

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ASK = (Message("user", "What is a lighthouse for?"),)
ENDLESS = (Message("user", "word " * 400),)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def opener(model: Mistral, opened: list[str]) -> Any:
    @contextmanager
    def enter() -> Iterator[Policy]:
        opened.append("opened")
        yield model.load(CPU, start=Start(), train=False)
        opened.append("closed")

    return enter


# --- own ----------------------------------------------------------------------------------


class TestOwn(CompleterLaws):
    completer = OwnCompleter()

    @pytest.fixture(autouse=True)
    def _weights(self, weights: Path) -> None:
        self.weights = weights

    @contextmanager
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        with closing(Answers(tmp_path / "answers")) as answers:
            yield Bench(CPU, answers, opener(backend(self.weights), []), "the key")


def test_its_own_model_is_opened_once_and_let_go(weights: Path, tmp_path: Path) -> None:
    opened: list[str] = []
    bench = replace(plain_bench(tmp_path), own=opener(backend(weights), opened), own_key="k1")
    assert not list(OwnCompleter().complete([], bench))
    assert not opened
    found = dict(OwnCompleter().complete([Request(ASK, Sampling(4))] * 3, bench))
    assert opened == ["opened", "closed"]
    assert found.keys() == {0, 1, 2}
    assert OwnCompleter().fingerprint(bench) == {"use": "own", "model": "k1"}
    assert OwnCompleter().fingerprint(replace(bench, own_key="k2")) != OwnCompleter().fingerprint(bench)
    assert OwnCompleter().miniature(tmp_path) == OwnCompleter()


def test_without_a_stage_before_there_is_no_own_model(tmp_path: Path) -> None:
    with pytest.raises(ZkitError, match="completer own: there is no model of a stage before"):
        list(OwnCompleter().complete([Request(ASK)], plain_bench(tmp_path)))


# --- model --------------------------------------------------------------------------------


class TestModel(CompleterLaws):
    @pytest.fixture(autouse=True)
    def _completer(self, weights: Path) -> None:
        self.completer = ModelCompleter(model=backend(weights))


def test_what_cannot_be_answered_fails_by_itself(weights: Path, tmp_path: Path) -> None:
    requests = [Request(dialogue, Sampling(4, 1.0, seed=n)) for n, dialogue in enumerate((ASK, ENDLESS, ASK, ENDLESS, ASK))]
    found = dict(ModelCompleter(model=backend(weights)).complete(requests, plain_bench(tmp_path)))
    assert [type(found[number]) for number in range(5)] == [Reply, Failure, Reply, Failure, Reply]
    assert "positions" in found[1].reason


def test_a_policy_that_refuses_all_for_one_is_asked_again_for_each() -> None:
    class Prim:
        def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
            if any(request.dialogue == ENDLESS for request in requests):
                raise ZkitError("too long for me")
            yield from ((number, Reply(f"{request.sampling.seed}")) for number, request in enumerate(requests))

    requests = [Request(ENDLESS if seed == 1 else ASK, Sampling(seed=seed)) for seed in range(3)]
    assert sorted(replies_of(Prim(), requests)) == [(0, Reply("0")), (1, Failure("too long for me")), (2, Reply("2"))]


def test_a_model_has_its_backends_problems_fingerprint_and_miniature(weights: Path, tmp_path: Path) -> None:
    known, lost = ModelCompleter(model=backend(weights)), ModelCompleter(model=backend(tmp_path / "nowhere"))
    assert not known.problems(CPU)
    assert "nowhere" in lost.problems(CPU)[0]
    bench = plain_bench(tmp_path)
    warm = ModelCompleter(model=backend(weights, dtype="bfloat16"))
    assert known.fingerprint(bench) != warm.fingerprint(bench)
    small = lost.miniature(tmp_path / "small")
    assert not small.problems(CPU)
    assert len(list(small.complete([Request(ASK, Sampling(3))], bench))) == 1


# --- vllm ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplingParams:
    """As vLLM's, with what is asked of it here."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16


class LLM:
    """Answers as vLLM's does, with words drawn by prompt and seed."""

    made: list[dict[str, Any]] = []
    slices: list[int] = []

    def __init__(
        self, model: str, *, revision: Any, dtype: str, tensor_parallel_size: int, gpu_memory_utilization: float, **more: Any
    ) -> None:
        from transformers import AutoTokenizer

        self.made.append({"model": model, "dtype": dtype, "gpus": tensor_parallel_size, "share": gpu_memory_utilization, **more})
        self.tokens = AutoTokenizer.from_pretrained(model)
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=more.get("max_model_len", 512)))

    def get_tokenizer(self) -> Any:
        return self.tokens

    def generate(self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True) -> list[Any]:
        assert not use_tqdm
        assert len(prompts) == len(sampling_params) > 0
        self.slices.append(len(prompts))
        return [self._output(prompt["prompt_token_ids"], params) for prompt, params in zip(prompts, sampling_params, strict=True)]

    def _output(self, ids: list[int], params: SamplingParams) -> Any:
        if len(ids) >= self.llm_engine.model_config.max_model_len:
            raise ValueError("The decoder prompt is longer than the maximum model length")
        draw = random.Random(repr((ids, params.seed if params.temperature else None)))
        size = draw.randrange(3, 30)
        words = [draw.choice(("sea", "ship", "light")) for _ in range(min(size, params.max_tokens))]
        reason = "stop" if size <= params.max_tokens else "length"
        return SimpleNamespace(outputs=[SimpleNamespace(text=" " + " ".join(words), finish_reason=reason)])


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "slices", [])
    return LLM


@pytest.fixture(scope="module")
def chatty(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with Zephyr's chat template, as a stage leaves it."""
    folder = tmp_path_factory.mktemp("chatty")
    backend(weights).load(CPU, start=Start(), train=False).save(folder)
    return folder


class TestVllm(CompleterLaws):
    device = CUDA

    @pytest.fixture(autouse=True)
    def _completer(self, chatty: Path, vllm: type[LLM]) -> None:
        self.completer = VllmCompleter(weights=str(chatty))


def test_vllm_is_asked_in_slices_and_told_what_to_load(chatty: Path, tmp_path: Path, vllm: type[LLM]) -> None:
    completer = VllmCompleter(weights=str(chatty), dtype="bfloat16", tensor_parallel=2, gpu_memory=0.5, max_length=300, slice=3)
    requests = [Request(ENDLESS if n == 4 else ASK, Sampling(16, 0.7, seed=n)) for n in range(8)]
    replies = completer.complete(requests, plain_bench(tmp_path))
    for _ in range(3):
        next(replies)
    assert vllm.slices == [3], "replies come before the next slice is begun"
    rest = dict(replies)
    asked = {"dtype": "bfloat16", "gpus": 2, "share": 0.5, "max_model_len": 300}
    assert vllm.made == [{"model": str(chatty), "trust_remote_code": False, **asked}]
    assert vllm.slices == [3, 2, 2]
    assert re.fullmatch(r"the dialogue is longer than the model's positions \([\d,]+ tokens of 300\)", rest[4].reason)
    assert {reply.finished for reply in rest.values() if isinstance(reply, Reply)} == {True, False}
    assert not any(reply.text.startswith(" ") for reply in rest.values() if isinstance(reply, Reply))


def test_memory_is_given_back_before_a_model_is_loaded(
    weights: Path, chatty: Path, vllm: type[LLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    init, load = LLM.__init__, Mistral.load
    monkeypatch.setattr("zephyr_kit.devices.give_back_memory", lambda: seen.append("given back"))
    monkeypatch.setattr("zkit_feedback.vllm_engine.give_back_memory", lambda: seen.append("given back"))
    monkeypatch.setattr(LLM, "__init__", lambda self, *args, **keys: seen.append("vllm") or init(self, *args, **keys))
    monkeypatch.setattr(Mistral, "load", lambda self, *args, **keys: seen.append("model") or load(self, *args, **keys))
    for completer in (ModelCompleter(model=backend(weights)), VllmCompleter(weights=str(chatty))):
        list(completer.complete([Request(ASK, Sampling(2))], plain_bench(tmp_path)))
    assert seen == ["given back", "model", "given back", "vllm", "given back"]


def test_vllm_reads_what_the_chat_template_writes(chatty: Path, vllm: type[LLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    monkeypatch.setattr(LLM, "_output", lambda self, ids, params: seen.append(ids) or answer("Hm.", "stop"))
    list(VllmCompleter(weights=str(chatty)).complete([Request(ASK)], plain_bench(tmp_path)))
    assert seen == [backend(chatty, template="auto").tokenizer(Start()).prompt_ids(ASK)]
    template = tmp_path / "other.jinja"
    refusing = "{%- if m.role == 'system' -%}{{ raise_exception('none') }}{%- endif -%}"
    template.write_text(f"{{%- for m in messages -%}}{refusing}{{{{ m.content }}}}{{%- endfor -%}}")
    asked = [Request((Message("system", "Be brief."), *ASK)), Request(ASK)]
    found = dict(VllmCompleter(weights=str(chatty), template=str(template)).complete(asked, plain_bench(tmp_path)))
    assert found == {0: Failure("the chat template cannot write the dialogue (none)"), 1: Reply("Hm.")}
    assert backend(chatty).tokenizer(Start()).tokens.decode(seen[1]) == ASK[0].content


def answer(text: str, reason: str) -> Any:
    return SimpleNamespace(outputs=[SimpleNamespace(text=text, finish_reason=reason)])


def test_vllm_says_what_it_lacks(chatty: Path, tmp_path: Path) -> None:
    problems = VllmCompleter(weights=str(tmp_path / "lost"), template=str(tmp_path / "lost.jinja")).problems(CPU)
    assert [text.split(":")[0] for text in problems[:3]] == [
        "vllm is not installed",
        'vllm needs a CUDA device, and this is cpu; `use = "model"` writes on any',
        "vllm",
    ]
    assert problems[0].endswith("pip install 'zephyr-kit[vllm]'")
    assert "no such folder" in problems[3]


def test_vllm_is_known_by_what_changes_its_replies(chatty: Path, tmp_path: Path) -> None:
    one, bench = VllmCompleter(weights=str(chatty)), plain_bench(tmp_path)
    assert replace(one, tensor_parallel=2, gpu_memory=0.5, slice=9).fingerprint(bench) == one.fingerprint(bench)
    assert replace(one, dtype="float16").fingerprint(bench) != one.fingerprint(bench)
    assert one.miniature(tmp_path) == ScriptedCompleter(instead_of=str(chatty))


def test_the_plugin_offers_them_by_name() -> None:
    offered = zkit_completers()
    assert [offered[name] for name in ("own", "model", "vllm")] == [OwnCompleter, ModelCompleter, VllmCompleter]

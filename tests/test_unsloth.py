"""The backend `unsloth`: what it trains is what `mistral` trains; what it cannot do is told, and the layout follows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import zkit_attentions
import zkit_mistral
import zkit_optimizers
import zkit_preference
import zkit_sft
import zkit_sources
import zkit_unsloth
from policies import check_reference, load, scores, shake, trained
from references import scored
from tiny import ListCorpus, random_trees, write_model
from toys import Listener
from unsloth_stand_in import FastLanguageModel
from zkit_attentions.segments import Segments
from zkit_mistral.backend import Lora, Mistral, Quantize
from zkit_mistral.policy import bare
from zkit_optimizers.adamw import AdamW
from zkit_preference.dpo import Dpo
from zkit_sft.objective import Sft
from zkit_unsloth import loading, reach
from zkit_unsloth.backend import Unsloth
from zkit_unsloth.policy import UnslothPolicy

from zephyr_kit import ZkitError
from zephyr_kit.batch import lay_out
from zephyr_kit.cli.planned import look_ahead
from zephyr_kit.config import PresetError
from zephyr_kit.devices import named_device
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed
from zephyr_kit.plugins import Plugins
from zephyr_kit.preset import Preset, resolve
from zephyr_kit.protocols import Backend, Objective, Start
from zephyr_kit.stages import TrainStage
from zephyr_kit.testing import BackendLaws
from zephyr_kit.workload import most_in_a_step
from zephyr_kit.world import World

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PAIRS = random_trees(4, completions=2, longest=9)
LORA = Lora(rank=4, alpha=8)
WAYS = [pytest.param(None, id="full"), pytest.param(LORA, id="lora"), pytest.param(replace(LORA, dora=True), id="dora")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[FastLanguageModel]]:
    """A library unsloth that is there, and takes a CPU."""
    library = ModuleType("unsloth")
    library.FastLanguageModel = FastLanguageModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", library)
    monkeypatch.setattr(loading, "problems", lambda _: [])
    monkeypatch.setattr(FastLanguageModel, "patched", 0)
    for name in ("UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_COMPILE_LOCATION"):
        monkeypatch.setenv(name, str(tmp_path))
    return FastLanguageModel


def unsloth(weights: Path, **options: Any) -> Unsloth:
    return Unsloth(**{"weights": str(weights), "dtype": "float32", "template": "zephyr", "attention": Segments(), **options})


def begin(weights: Path, start: Start | None = None, **options: Any) -> Any:
    return unsloth(weights, **options).load(CPU, start=start or Start(), train=True)


@torch.no_grad()
def apart(policy: Any) -> torch.Tensor:
    policy.module.eval()
    return policy.score(lay_out(PAIRS, share_prompts=False))


class TestLaws(BackendLaws):
    """Of full weights."""

    options: dict[str, Any] = {}

    @pytest.fixture(autouse=True)
    def _backend(self, weights: Path, stand_in: type[FastLanguageModel]) -> None:
        self.backend = unsloth(weights, **self.options)

    def test_has_no_problems_where_it_loads(self) -> None:
        (told,) = self.backend.problems(self.device, start=Start())
        assert "needs an NVIDIA" in told

    def test_miniature_is_the_same_kind_of_model(self, tmp_path: Path) -> None:
        """It is mistral's, which runs anywhere."""
        assert type(self.backend.miniature(tmp_path)) is type(self.backend.mistral)

    def test_answers_every_request_once(self) -> None:
        with pytest.raises(ZkitError, match="writes no replies"):
            self._policy().generate(self._requests())

    def test_a_reply_depends_on_its_own_request_alone(self) -> None:
        policy = self.backend.load(CPU, start=Start(), train=False)
        assert not isinstance(policy, UnslothPolicy)
        assert len(list(policy.generate(self._requests()))) == len(self._requests())


class TestLawsOfLora(TestLaws):
    options = {"lora": replace(LORA, dropout=0.1)}


class TestLawsOfQlora(TestLaws):
    options = {"lora": LORA, "quantize": Quantize()}


def losses(backend: Backend, objective: Objective, folder: Path, start: Start, *, share_prompts: bool) -> list[float]:
    """Of five steps, with a cached reference if the objective needs one."""
    corpus = ListCorpus(random_trees(20, completions=objective.completions, seed=1, all_trained=False))
    policy = backend.load(CPU, start=start, train=True)
    reference = scored(policy, corpus, folder, capacity=90, share_prompts=share_prompts) if objective.needs_reference else None
    adamw = partial(AdamW().build, learning_rate=3e-3)
    trainer = Trainer(policy, objective, optimizer=adamw, learning_rate=lambda _: 3e-3, seed=3)
    feed = Feed(corpus, objective, 90, share_prompts, CPU, World(), reference)
    return [trainer.step(feed.step(list(range(first, first + 4)))).means["loss"].item() for first in range(0, 20, 4)]


@pytest.mark.parametrize("lora", WAYS)
@pytest.mark.parametrize("objective", [Sft(), Dpo(beta=0.3)], ids=["sft", "dpo"])
def test_losses_are_those_of_mistral(weights: Path, stand_in: type, objective: Objective, lora: Lora | None, tmp_path: Path) -> None:
    ours = unsloth(weights, lora=lora)
    expected = losses(ours.mistral, objective, tmp_path / "one", Start(), share_prompts=True)
    found = losses(ours, objective, tmp_path / "other", Start(), share_prompts=False)
    assert found == pytest.approx(expected, rel=2e-4)
    assert len(set(found)) == 5


@pytest.mark.parametrize("changed", [frozenset(), frozenset({"lora"})], ids=["continued", "stacked"])
def test_losses_on_an_earlier_adapter_are_those_of_mistral(weights: Path, stand_in: type, changed: frozenset[str], tmp_path: Path) -> None:
    policy = begin(weights, lora=LORA)
    shake(policy)
    policy.save(tmp_path / "sft")
    start = Start(tmp_path / "sft", changed)
    later = unsloth(weights, lora=replace(LORA, rank=2) if changed else LORA)
    FastLanguageModel.patched = 0
    found = losses(later, Dpo(beta=0.3), tmp_path / "one", start, share_prompts=False)
    assert FastLanguageModel.patched == (0 if changed else 1), "kernels that know one adapter are not given two"
    assert found == pytest.approx(losses(later.mistral, Dpo(beta=0.3), tmp_path / "other", start, share_prompts=True), rel=2e-4)


@pytest.mark.parametrize("lora", WAYS)
def test_what_is_saved_is_read_by_mistral(weights: Path, stand_in: type, lora: Lora | None, tmp_path: Path) -> None:
    policy = begin(weights, lora=lora)
    shake(policy)
    expected = apart(policy)
    policy.save(tmp_path / "saved")
    torch.testing.assert_close(scores(load(weights, Start(tmp_path / "saved"), train=False), PAIRS), expected, rtol=1e-4, atol=1e-4)
    assert bare(load(weights, Start(tmp_path / "saved"), train=False).module.model).config.pad_token_id is None
    torch.testing.assert_close(apart(begin(weights, Start(tmp_path / "saved"), lora=lora)), expected, rtol=1e-4, atol=1e-4)


def test_the_reference_switches_a_new_adapter_off(weights: Path, stand_in: type) -> None:
    policy = begin(weights, lora=LORA)
    expected = apart(policy)
    shake(policy)
    with policy.reference():
        torch.testing.assert_close(apart(policy), expected)
    assert (apart(policy) - expected).abs().max() > 1e-2


def test_a_row_that_shares_prompts_is_refused(weights: Path, stand_in: type) -> None:
    with pytest.raises(ZkitError, match="share_prompts = false"):
        begin(weights).score(lay_out(PAIRS))


def test_adapters_compute_in_the_model_s_type(weights: Path, stand_in: type) -> None:
    policy = begin(weights, lora=LORA, dtype="bfloat16")
    assert {parameter.dtype for parameter in trained(policy).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"activation_checkpointing": "block"}, True),
        ({"activation_checkpointing": "block", "activation_offload": True}, "unsloth"),
    ],
)
def test_checkpointing_is_asked_for_in_its_words(weights: Path, stand_in: type, options: dict[str, Any], expected: Any) -> None:
    for lora in (None, LORA):
        begin(weights, lora=lora, **options).module.train()
        assert FastLanguageModel.asked["use_gradient_checkpointing"] == FastLanguageModel.trained_with == expected


def test_it_is_asked_for_these_weights_and_no_others(weights: Path, stand_in: type) -> None:
    begin(weights, lora=LORA)
    asked = FastLanguageModel.asked
    assert asked["model_name"] == str(weights)
    assert asked["use_exact_model_name"]
    assert asked["use_safetensors"]
    assert not asked["fix_tokenizer"]
    assert (asked["load_in_4bit"], asked["load_in_16bit"], asked["dtype"]) == (False, True, torch.float32)
    begin(weights, lora=LORA, quantize=Quantize(kind="fp4", double=False))
    config = FastLanguageModel.asked["quantization_config"]
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant, config.bnb_4bit_quant_storage) == ("fp4", False, torch.uint8)


def test_a_model_that_came_otherwise_than_asked_is_refused(weights: Path, stand_in: type, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = FastLanguageModel.from_pretrained

    def in_float16(name: str, **how: Any) -> Any:
        return honest(name, **{**how, "dtype": torch.float16})

    def in_full(name: str, **how: Any) -> Any:
        return honest(name, **{key: value for key, value in how.items() if key != "quantization_config"})

    monkeypatch.setattr(FastLanguageModel, "from_pretrained", in_float16)
    with pytest.raises(ZkitError, match=r"torch\.float16 instead of"):
        begin(weights)
    monkeypatch.setattr(FastLanguageModel, "from_pretrained", in_full)
    with pytest.raises(ZkitError, match="instead of 4 bits"):
        begin(weights, lora=LORA, quantize=Quantize())


def test_a_body_that_looks_across_examples_is_refused(weights: Path, stand_in: type, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = FastLanguageModel.from_pretrained

    def deaf(name: str, **how: Any) -> Any:
        model, tokens = honest(name, **how)
        whole = type(model.model).forward
        # An older one, that is told nothing and makes no mask of its own either.
        mask = torch.full((64, 64), float("-inf")).triu(1)

        def forward(input_ids: Any, packed_seq_lengths: Any = None, **rest: Any) -> Any:
            size = input_ids.shape[1]
            return whole(model.model, input_ids=input_ids, **{**rest, "attention_mask": mask[None, None, :size, :size]})

        model.model.forward = forward
        return model, tokens

    monkeypatch.setattr(FastLanguageModel, "from_pretrained", deaf)
    with pytest.raises(ZkitError, match="packed rows of MistralForCausalLM do not score"):
        begin(weights)


def test_other_architectures_are_refused(tmp_path: Path, stand_in: type) -> None:
    with pytest.raises(ZkitError, match='of the type olmo2: use = "mistral" may'):
        begin(write_model(tmp_path, "Olmo2"))


def test_what_it_cannot_load_is_told_in_a_line(weights: Path, stand_in: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(place: str, **_: Any) -> None:
        raise RuntimeError("Unsloth: Could not find a valid pad token\nand more")

    monkeypatch.setattr(FastLanguageModel, "from_pretrained", failing)
    with pytest.raises(ZkitError, match=r'use = "unsloth": it cannot load .* \(Unsloth: Could not find a valid pad token\)$'):
        begin(weights)


def test_weights_are_not_shared_out(weights: Path, stand_in: type) -> None:
    with pytest.raises(ZkitError, match=r'`train\.sharding` = "replicated"'):
        begin(weights).shard(None)


def test_without_a_gpu_it_refuses_with_the_reason(weights: Path) -> None:
    (problem,) = unsloth(weights).problems(CPU, start=Start())
    assert problem.startswith('[model] use = "unsloth": unsloth needs an NVIDIA (or AMD, or Intel) GPU')
    assert problem.endswith('use = "mistral" runs here')
    with pytest.raises(ZkitError, match="needs an NVIDIA"):
        begin(weights)


def test_not_installed_it_names_the_extra(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"torch": "2.13.0"})
    assert reach.problems(CUDA) == ["[model] use = \"unsloth\": not installed: unsloth and unsloth_zoo; pip install 'zephyr-kit[unsloth]'"]


def test_versions_beyond_its_caps_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"unsloth": "2026.10.9", "unsloth_zoo": "2026.10.9", "transformers": "5.17.0", "datasets": "4.8.5", "trl": "1.15.0"}
    takes = ["transformers!=5.0.0,<=5.17.0,>=4.52.4", "trl<=1.15.0", "datasets<5.0.0", "absent>=9", 'trl<1; extra == "old"']
    installed(monkeypatch, there, takes)
    assert reach.problems(CUDA) == []
    installed(monkeypatch, {**there, "transformers": "5.23.0", "datasets": "5.2.0"}, takes)
    one, other = reach.problems(CUDA)
    assert "unsloth 2026.10.9 takes transformers<=5.17.0, and 5.23.0 is installed" in one
    assert "unsloth 2026.10.9 takes datasets<5.0.0, and 5.2.0 is installed" in other


def installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], takes: list[str] | None = None) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise reach.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(reach, "version", version)
    monkeypatch.setattr(reach, "requires", lambda _: takes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": LORA, "quantize": Quantize(bits=8)}, "read 4 bits"),
        ({"quantize": Quantize()}, "needs `lora`"),
        ({"activation_offload": True}, 'set `activation_checkpointing` = "block"'),
        ({"template": "chatlm"}, '`template` = "chatlm"'),
    ],
)
def test_what_cannot_be_is_refused(weights: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unsloth(weights, **options)


def test_its_keys_are_those_of_mistral() -> None:
    assert {f.name for f in fields(Unsloth)} < {f.name for f in fields(Mistral)}


def test_what_is_lean_is_offered_as_itself(weights: Path) -> None:
    steps = unsloth(weights).leaner()
    assert [step.key for step in steps] == ["activation_checkpointing", "lora", "quantize"]
    last = steps[-1].offer
    assert isinstance(last, Unsloth)
    assert (last.activation_checkpointing, last.lora, last.quantize) == ("block", Lora(), Quantize())


def test_the_miniature_runs_anywhere(weights: Path, tmp_path: Path) -> None:
    small = unsloth(weights).miniature(tmp_path)
    assert small.problems(CPU, start=Start()) == []
    assert torch.isfinite(scores(small.load(CPU, start=Start(), train=True))).all()


def test_the_same_model_has_the_same_fingerprint(weights: Path) -> None:
    """So that a stage that is done stays done, and reference scores are kept."""
    one = unsloth(weights, lora=LORA, activation_checkpointing="block")
    assert one.fingerprint() == one.mistral.fingerprint()
    assert one.scores_fingerprint(Start()) == one.mistral.scores_fingerprint(Start())


def preset(weights: Path, changes: tuple[str, ...] = (), **train: Any) -> Preset:
    data = [{"use": "jsonl", "path": str(weights / "none.jsonl")}]
    steps = {"steps": 2, "examples_per_step": 8, "learning_rate": 1e-3, **train}
    table = {
        "name": "fast",
        "model": {"use": "unsloth", "weights": str(weights), "dtype": "float32", "template": "zephyr"},
        "stages": {"sft": {"objective": "sft", "data": data, "train": steps}, "dpo": {"objective": "dpo", "data": data, "train": steps}},
    }
    plugins = (zkit_attentions, zkit_mistral, zkit_optimizers, zkit_preference, zkit_sft, zkit_sources, zkit_unsloth)
    return resolve(table, Plugins(*plugins, discover=False).offers, file="fast.toml", changes=changes)


def shared(found: Preset) -> list[bool]:
    return [stage.task.train.share_prompts for stage in found.stages if isinstance(stage.task, TrainStage)]


def test_the_layout_follows_the_backend(weights: Path) -> None:
    found = preset(weights)
    assert shared(found) == [False, False]
    assert [stage.settings["train.share_prompts"] for stage in found.stages] == [False, False]
    assert {s.origin for s in found.settings if s.path.endswith(".train.share_prompts")} == {"[model]"}
    sft, dpo = found.stages
    assert sft.remark == ""
    assert dpo.remark.startswith("prompts are repeated for each completion")
    assert shared(preset(weights, changes=('model.use="mistral"',))) == [True, True]
    assert shared(preset(weights, changes=('stages.dpo.model.use="mistral"',))) == [False, True]
    assert preset(weights, share_prompts=False).stages[1].remark == ""


def test_prompts_that_are_to_be_shared_are_refused(weights: Path) -> None:
    with pytest.raises(PresetError, match=r"\[stages.sft.train\] `share_prompts` = true: the backend .* leave it out$"):
        preset(weights, share_prompts=True)
    with pytest.raises(PresetError, match=r"\[stages.dpo.train\] `share_prompts` = true: .* \(from command line"):
        preset(weights, changes=("stages.dpo.train.share_prompts=true",))


def test_the_plan_says_so_and_counts_whole_rows(weights: Path, tmp_path: Path) -> None:
    device = named_device("a100-80")
    presets = [preset(weights), preset(weights, changes=('model.use="mistral"',))]
    ours, theirs = (list(look_ahead(each, device, World(), Listener(), tmp_path, with_data=False))[1] for each in presets)
    assert any("prompts are repeated" in remark for remark in ours.remarks)
    assert any("activations are counted as `mistral` keeps them" in remark for remark in ours.remarks)
    assert not any("prompts are repeated" in remark for remark in theirs.remarks)
    assert ours.forecast is not None
    assert most_in_a_step(ours.task) > most_in_a_step(theirs.task)


def test_nothing_heavy_is_imported_for_the_table(weights: Path) -> None:
    code = (
        "import sys; from zkit_unsloth import zkit_backends; cls = zkit_backends()['unsloth']; "
        "from zkit_unsloth import reach; print(sorted({'torch', 'transformers', 'unsloth'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_import_that_fails_is_told(weights: Path, stand_in: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unsloth", None)
    with pytest.raises(ZkitError, match=r"it cannot be imported \(ModuleNotFoundError"):
        begin(weights)


def test_the_reference_is_where_a_stage_began(weights: Path, stand_in: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `mistral` is held to it, with rows that share no prompts."""
    import policies

    monkeypatch.setattr(policies, "lay_out", partial(lay_out, share_prompts=False))
    check_reference(begin(weights, lora=LORA), scores(load(weights, train=False)))
    policy = begin(weights)
    check_reference(policy, scores(policy))

"""`zkit plan`, and the same as preflight: what fits is known before anything is loaded."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from zkit_attentions.segments import Segments
from zkit_mistral.backend import Lora, Mistral
from zkit_mistral.shapes import TABLED as SHAPES

from benchmarks import memory, models
from tests.tiny import ListCorpus, random_trees, write_model
from tests.toys import Listener
from zephyr_kit.cli import build, main
from zephyr_kit.devices import TABLED, Device, UnknownDevice, host_memory, memory_left, named_device
from zephyr_kit.exits import Exit
from zephyr_kit.forecast import LADDER, Forecast, Outlook, over_devices, skeleton_start
from zephyr_kit.plugins import Plugins
from zephyr_kit.preflight import NotReady, foresee
from zephyr_kit.preset import Preset, load
from zephyr_kit.protocols import Leaner
from zephyr_kit.remedy import find_remedy
from zephyr_kit.sizes import GIB, MIB, in_words
from zephyr_kit.stages import TrainStage
from zephyr_kit.workload import made_up, most_in_a_step
from zephyr_kit.world import World

pytestmark = pytest.mark.usefixtures("rehearsed_once")

PRESETS = sorted((Path(__file__).parents[1] / "presets").glob("*.toml"))

PRESET = """
name = "tiny"
[model]
use = "mistral"
weights = "{folder}/model"
dtype = "float32"
template = "zephyr"
[stages.sft]
objective = "sft"
data = [{{ use = "jsonl", path = "{folder}/chat.jsonl" }}]
max_length = 256
train = {{ steps = 2, examples_per_step = 8, learning_rate = 1e-3 }}
[stages.dpo]
objective = {{ use = "dpo", beta = 0.1 }}
data = [{{ use = "jsonl", path = "{folder}/pairs.jsonl" }}]
max_length = 256
train = {{ steps = 2, examples_per_step = 8, learning_rate = 1e-3 }}
"""


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset of two stages, with a model of 2.6 million parameters and its data beside it."""
    folder = tmp_path_factory.mktemp("plan")
    write_model(folder / "model", hidden_size=256, intermediate_size=1024, num_hidden_layers=3)
    words = ["sun", "moon", "star", "tree", "river"]
    chat = [{"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": word * 9}]} for word in words * 8]
    pairs = [{"prompt": word * 5, "chosen": word, "rejected": word * 2} for word in words * 8]
    for name, rows in (("chat", chat), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "preset.toml").write_text(PRESET.format(folder=folder))
    return folder / "preset.toml"


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


def outlook(preset: Preset, name: str, memory: int, kind: str = "cuda") -> Outlook:
    (stage,) = (each for each in preset.stages if each.name == name)
    assert isinstance(stage.task, TrainStage)
    return Outlook(stage, stage.task, skeleton_start(preset, stage), Device("toy", kind, memory, 0, 1e12), preset.seed)


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_what_a_preset_of_ours_needs_holds_what_is_planned(file, plugins):
    """Offline, from tabled shapes; in small batches, since larger ones are chosen only where there is room."""
    preset = load(file, plugins.offers)
    names = [stage.name for stage in preset.stages if isinstance(stage.task, TrainStage)]
    for name in names:
        view = outlook(preset, name, int((preset.needs.memory or 2) * GIB), preset.needs.device.replace("any", "cpu"))
        foretold = replace(view, libraries=GIB // 2).with_batches_of(2048)
        assert foretold.fits
        assert foretold.rehearsal.shape.num_parameters > 1e6


def test_the_papers_model_fits_the_machines_it_is_said_to_fit(plugins):
    """With all weights, one GPU of 139 GiB or eight of 80; with adapters on a 4-bit base, 12 GiB for pairs of 1,024 tokens."""
    full, qlora = (load(file, plugins.offers) for file in PRESETS if file.stem in ("zephyr-7b-full", "zephyr-qlora"))
    one = outlook(full, "dpo", 0)
    rehearsed = one.with_batches_of(2048)
    assert replace(rehearsed, device=named_device("h200")).fits
    assert replace(one, device=replace(named_device("a100-80"), count=8)).with_batches_of(2048).fits
    assert not replace(rehearsed, device=named_device("a100-80")).fits
    rounding = 'stages.dpo.train.optimizer={ use = "adamw_8bit", stochastic_rounding = true }'
    short = load(next(file for file in PRESETS if file.stem == "zephyr-7b-full"), plugins.offers, changes=[rounding])
    assert replace(outlook(short, "dpo", 0).with_batches_of(2048), device=named_device("a100-80")).fits, "without float32 copies"
    assert outlook(qlora, "dpo", 12 * GIB).with_batches_of(2048).peak < 12 * GIB


def test_quantised_weights_take_half_a_byte_and_their_constants(plugins):
    preset = load(next(file for file in PRESETS if file.stem == "zephyr-qlora"), plugins.offers)
    weights = outlook(preset, "sft", GIB).with_batches_of(2048).parts["weights"]
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    embeddings = 2 * 2 * 32_000 * 4096
    adapters = 2 * 41_943_040
    assert weights == pytest.approx(linear * (0.5 + 0.127 / 8) + embeddings + adapters, rel=0.002)


def test_what_does_not_fit_is_refused_with_settings_that_do(preset, plugins):
    """Each step is milder than the next: batches, recomputing, another optimizer, adapters, a quantised base."""
    read = load(preset, plugins.offers)
    seen = []
    for room in (100 * MIB, 64 * MIB, 48 * MIB, 34 * MIB, 22 * MIB):
        view = outlook(read, "dpo", room)
        with pytest.raises(NotReady, match=r"stages.dpo needs about .* toy has .*: .*gradients.*\nit fits, with about .*, with:  --set "):
            foresee(view, Listener())
        remedy = find_remedy(view)
        assert remedy is not None
        seen.append(" ".join(remedy.changes))
        changed = load(preset, plugins.offers, changes=remedy.changes)
        assert outlook(changed, "dpo", room).forecast().fits
        keys = [change.partition("=")[0] for change in remedy.changes]
        assert len(set(keys)) == len(keys)
    for told, key in zip(seen, ("tokens_per_batch", "activation_checkpointing", "adamw_8bit", "model.lora", "model.quantize"), strict=True):
        assert key in told
    assert "model." not in seen[0]
    assert "optimizer" not in seen[1] + seen[3]
    with pytest.raises(NotReady, match="no setting that is known makes it fit; take a smaller model"):
        foresee(outlook(read, "dpo", 1000), Listener())


def test_a_remedy_holds_nothing_that_brings_next_to_nothing(preset, plugins):
    """Where rows are short, to compute activations again slows a step down and saves no memory."""
    short = load(preset, plugins.offers, changes=["stages.sft.max_length=8", "stages.sft.train.examples_per_step=1"])
    enough = outlook(short, "sft", GIB).forecast().peak
    remedy = find_remedy(outlook(short, "sft", int(0.9 * enough)))
    assert remedy is not None
    assert [change.partition("=")[0] for change in remedy.changes] == ["stages.sft.train.optimizer"]


def test_a_remedy_slows_a_step_down_where_nothing_else_makes_it_fit(preset, plugins):
    """Though it saved next to nothing with all weights."""
    rows = ["stages.sft.max_length=64", "stages.sft.train.examples_per_step=1"]
    leanest = ["model.lora={ rank = 16, alpha = 16 }", "model.quantize={ bits = 4 }", 'stages.sft.model.activation_checkpointing="block"']
    peak = outlook(load(preset, plugins.offers, changes=[*rows, *leanest]), "sft", GIB).forecast().peak
    remedy = find_remedy(outlook(load(preset, plugins.offers, changes=rows), "sft", peak))
    assert remedy is not None
    assert set(leanest) == set(remedy.changes)


def test_rows_that_are_longer_than_a_batch_are_told(preset, plugins):
    short = load(preset, plugins.offers, changes=["stages.sft.train.tokens_per_batch=16"])
    view, listener = replace(outlook(short, "sft", GIB), corpus=ListCorpus(random_trees(16, longest=40))), Listener()
    forecast = foresee(view, listener)
    assert forecast.workload.packing <= 1
    assert listener.lines[0].endswith(f"in batches of up to 16 tokens (but examples of up to {forecast.workload.longest}, each by itself)")


def test_a_gpu_takes_its_time_to_be_told_what_to_do(preset, plugins):
    """However small the model is."""
    forecast = replace(outlook(load(preset, plugins.offers), "sft", GIB), corpus=ListCorpus(random_trees(64, longest=40))).forecast()
    fast = replace(forecast, device=replace(forecast.device, tabled_rate=1e18))
    assert forecast.rehearsal.operations > 100
    batches = forecast.workload.num_steps * forecast.workload.batches_per_step
    assert fast.seconds == pytest.approx(batches * forecast.rehearsal.operations * 5e-6, rel=0.2)
    assert replace(fast, device=replace(fast.device, kind="cpu")).batch_seconds != fast.batch_seconds


def test_batches_are_the_largest_that_leave_room_and_no_larger_than_a_step(preset, plugins):
    read = load(preset, plugins.offers, changes=["stages.sft.train.examples_per_step=64"])
    enough = outlook(read, "sft", 64 * GIB).forecast()
    assert (enough.chosen, enough.tokens_per_batch) == (True, 16_384)
    assert most_in_a_step(read.stages[0].task) == 64 * 256
    tight = outlook(read, "sft", int(enough.peak * 0.7)).forecast()
    assert tight.tokens_per_batch in LADDER
    assert tight.tokens_per_batch < enough.tokens_per_batch
    assert tight.peak <= 0.9 * enough.peak * 0.7
    assert replace(outlook(read, "sft", 64 * GIB, "cpu"), libraries=MIB).forecast().tokens_per_batch == 2048
    given = load(preset, plugins.offers, changes=["stages.sft.train.tokens_per_batch=512"])
    assert outlook(given, "sft", 64 * GIB).forecast().tokens_per_batch == 512


def test_every_leaner_model_can_be_made(plugins):
    """Of all settings that go together, also where one of them leaves no choice."""
    choices = {"activation_checkpointing": ("none", "selective", "block"), "activation_offload": (False, True), "compile": (False, True)}
    for values in itertools.product(*choices.values(), (None, Lora())):
        try:
            model = Mistral(weights="some/where", **dict(zip((*choices, "lora"), values, strict=True)), attention=Segments())
        except ValueError:
            continue
        keys = [step.key for step in model.leaner()]
        assert keys[-1] == "quantize"
        assert model.leaner()[-1].offer.leaner() == []


def test_devices_that_share_a_step_have_their_parts_of_it(preset, plugins):
    """Whether they share the weights or have copies."""
    given = load(preset, plugins.offers, changes=["stages.sft.train.examples_per_step=32", "stages.sft.train.sharding=auto"])
    one = replace(outlook(given, "sft", GIB), corpus=ListCorpus(random_trees(64, longest=40)))
    alone, *shared = (each.with_batches_of(4096).rehearsal.num_tokens for each in (one, *over_devices(one, World(size=4, local_size=4))))
    assert len(shared) == 2
    assert all(alone / 5 < tokens < alone / 3 for tokens in shared)


def test_devices_have_copies_where_one_holds_all_and_else_shares(preset, plugins, monkeypatch):
    """As a run on them would; by arithmetic, four with copies are four times as fast as one."""
    monkeypatch.setattr("zephyr_kit.devices.CONTEXT", 0)
    rows = ["stages.sft.train.examples_per_step=32", "stages.sft.train.tokens_per_batch=2048"]
    whole = outlook(load(preset, plugins.offers, changes=rows), "sft", GIB).forecast()

    def told(memory: float, *changes: str, devices: int = 4) -> dict[str, Any]:
        monkeypatch.setitem(TABLED, "rtx4090", (memory / GIB, 165))
        changed = [part for change in (*rows, *changes) for part in ("--set", change)]
        _, text = planned(str(preset), "--device", "rtx4090", "--devices", str(devices), "--no-data", "--json", *changed)
        return json.loads(text[text.index("{") :])["stages"][0]

    roomy, tight = told(2 * whole.peak), told(0.9 * whole.peak)
    assert (roomy["sharded"], tight["sharded"], tight["fits"]) == (False, True, True)
    assert told(2 * whole.peak, 'stages.sft.train.sharding="sharded"')["sharded"]
    assert not told(0.9 * whole.peak, 'stages.sft.train.sharding="replicated"')["fits"]
    assert roomy["operations_a_second"] == 4 * told(2 * whole.peak, devices=1)["operations_a_second"]
    assert "each has a copy of the weights" in planned(str(preset), "--device", "h200", "--devices", "2", "--no-data")[1]


def test_processes_share_a_hosts_memory_and_have_gpus_of_their_own():
    host, card = Device("cpu", "cpu", 8 * GIB, 0), named_device("h200")
    assert (host.for_each_of(4).memory, card.for_each_of(4)) == (2 * GIB, card)


def test_layers_that_are_kept_are_given_up_first():
    """It changes no result."""
    model = Mistral(weights="some/where", activation_checkpointing="selective", layers_kept=13, attention=Segments())
    first, second, *_ = model.leaner()
    assert (first.key, first.value, first.same_result, first.offer.layers_kept) == ("layers_kept", "0", True, 0)
    assert (second.offer.activation_checkpointing, second.offer.layers_kept) == ("block", 0)


def test_a_card_that_is_not_in_the_table_has_no_speed(preset, plugins):
    known = outlook(load(preset, plugins.offers), "sft", GIB).with_batches_of(2048)
    assert known.rate == 1e12
    unknown = replace(known, device=replace(known.device, tabled_rate=None))
    assert unknown.rate is None
    assert unknown.seconds is None


def test_a_container_has_what_it_may_take(tmp_path):
    limit = tmp_path / "memory.max"
    whole = host_memory(limit)
    for text, expected in ((f"{2**20}\n", 2**20), ("max\n", whole), (str(2**60), whole)):
        limit.write_text(text)
        assert host_memory(limit) == expected


def test_what_others_hold_is_not_left(tmp_path):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal: 9 kB\nMemAvailable:   1024 kB\n")
    assert MIB < memory_left(torch.device("cpu"), told) < host_memory()
    assert memory_left(torch.device("cpu"), tmp_path / "none") == host_memory()


@pytest.mark.parametrize(
    ("size", "told"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1010 * MIB, "1,010 MiB"), (3.51 * GIB, "3.51 GiB"), (126.3 * GIB, "126 GiB")],
)
def test_bytes_in_words(size, told):
    assert in_words(size) == told


def test_made_up_batches_are_as_full_as_they_may_be(preset, plugins):
    dpo = load(preset, plugins.offers).stages[1].task
    for capacity in (100, 448, 1000, 2048):
        trees = made_up(dpo, capacity)
        tokens = sum(tree.num_tokens for tree in trees)
        assert max(0, capacity - 8) <= tokens <= max(capacity, 448)
    assert len(made_up(dpo, 10**6)) == dpo.train.examples_per_step


def over(count: int, view: Outlook) -> Forecast:
    foretold = replace(view, device=replace(view.device, count=count)).with_batches_of(2048)
    assert not dist.is_initialized(), "no process group is left behind"
    return foretold


def test_more_devices_share_all_but_the_activations(preset, plugins):
    view = outlook(load(preset, plugins.offers), "sft", GIB)
    one, four = over(1, view), over(4, view)
    for name in ("weights", "optimizer"):
        assert four.parts[name] == pytest.approx(one.parts[name] / 4, rel=0.01)
    assert one.parts["activations"] < four.parts["activations"], "blocks are gathered"
    assert four.rehearsal.state == one.rehearsal.state, "the checkpoints of all together"
    assert four.rehearsal.own_state == pytest.approx(one.rehearsal.state / 4, rel=0.01)
    assert (four.rehearsal.shape, four.rehearsal.flops) == (one.rehearsal.shape, one.rehearsal.flops)


def test_adapters_are_whole_on_every_device(preset, plugins):
    view = outlook(load(preset, plugins.offers, changes=["model.lora={ rank = 4 }"]), "sft", GIB)
    one, four = over(1, view), over(4, view)
    for name in ("optimizer", "gradients"):
        assert four.parts[name] == one.parts[name]
    assert four.parts["weights"] < one.parts["weights"] / 3


def test_machines_that_hold_copies_pass_gradients_on(preset, plugins):
    resolved = load(preset, plugins.offers, changes=['stages.sft.train.sharding="hybrid"'])
    hybrid, sharded = over(4, outlook(resolved, "sft", GIB)), over(4, outlook(load(preset, plugins.offers), "sft", GIB))
    assert hybrid.parts["weights"] == pytest.approx(sharded.parts["weights"], rel=1e-3)
    assert "allreduce" in hybrid.rehearsal.messages
    assert "allreduce" not in sharded.rehearsal.messages


def test_ranks_that_are_there_are_not_disturbed(preset, plugins, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    view = outlook(load(preset, plugins.offers), "sft", GIB)
    alone = over(4, view)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        among = replace(view, device=replace(view.device, count=4)).with_batches_of(2048)
        total = torch.ones(1)
        dist.all_reduce(total)
    finally:
        dist.destroy_process_group()
    assert (among, float(total)) == (alone, 1.0)


def test_a_model_that_cannot_be_foreseen_is_told_and_runs(preset, plugins):
    class Closed:
        def skeleton(self, start: object) -> None:
            raise NotImplementedError("a closed shop\nwith details")

        def leaner(self) -> list[Leaner]:
            return []

    view, listener = outlook(load(preset, plugins.offers), "sft", GIB), Listener()
    assert foresee(replace(view, stage=replace(view.stage, model=Closed())), listener) is None
    assert listener.lines == ["stage sft: its memory cannot be foreseen (NotImplementedError: a closed shop)"]


def planned(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build(), ["plan", *arguments])
    return result.exit_code, result.output


def test_the_command_tells_steps_memory_and_time(preset):
    code, told = planned(str(preset), "--device", "rtx4090")
    assert code == 0
    assert told.startswith("tiny on rtx4090, 23.5 GiB")
    for line in ("stage sft: fits", "stage dpo: fits", "40 examples", "2 of about", "shared prompts", "save", "of training"):
        assert line in told
    code, told = planned(str(preset), "--device", "cpu", "--json")
    facts = json.loads(told[told.index("{") :])
    sft, dpo = facts["stages"]
    assert sft["data"]["num_steps"] == 2
    assert 0 < dpo["data"]["saved"] < 1
    assert sft["bytes"]["peak"] == sum(sft["bytes"]["by_part"].values())
    assert sft["seconds"] > 0


def test_the_command_says_no_with_what_would_fit(preset, plugins, monkeypatch):
    least = outlook(load(preset, plugins.offers), "sft", 1).with_batches_of(512).peak
    monkeypatch.setitem(TABLED, "rtx4090", (0.9 * least / GIB, 165))
    monkeypatch.setattr("zephyr_kit.devices.CONTEXT", 0)
    code, told = planned(str(preset), "--device", "rtx4090", "--no-data")
    assert code == 1
    assert "does not fit" in told
    assert "--set" in told
    with pytest.raises(UnknownDevice, match=r"rtx4091: torch knows no such device.*; or plan for one of .*h200.*rtx4090"):
        named_device("rtx4091")
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(preset), "--device", "rtx4091"])
    assert ended.value.code == Exit.NOT_UNDERSTOOD


def test_a_run_chooses_notes_and_tells_its_batches(preset, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", str(preset), "--output", str(tmp_path / "run"), "--device", "cpu"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "stage sft: about " in told
    assert "in batches of up to 2,048 tokens" in told
    assert [note["tokens_per_batch"] for note in json.loads((tmp_path / "run" / "run.json").read_text())] == [2048, 2048]


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["full", "qlora"])
def test_a_process_that_trains_takes_what_was_foretold(trained, shared, tmp_path):
    """Within 10 %, of a small model on real data; `python -m benchmarks memory` does it for larger ones."""
    stage = memory.STAGES["sft"].format(data=shared / "data")
    weights = models.make("5m", "float32", tmp_path)
    text = memory.PRESET.format(weights=weights, trained=memory.TRAINED[trained], stage=stage)
    assert memory.measure(tmp_path / "run", text, {}, processors=2)["foretold / measured"] == pytest.approx(1, abs=0.1)


def test_tabled_shapes_are_configurations(plugins):
    from transformers import MistralConfig

    for shape in SHAPES.values():
        assert MistralConfig(**shape).num_hidden_layers == 32

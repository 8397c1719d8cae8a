"""Presets: read strictly, changed from the command line, resolved before anything heavy is touched."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
import tomli_w

from zephyr_kit import protocols
from zephyr_kit.config import Offered, Offers, PresetError
from zephyr_kit.plugins import OFFERS, Plugins
from zephyr_kit.preset import EvaluateStage, Preset, TrainStage, load, read_toml, resolve
from zephyr_kit.schema import preset_schema
from zephyr_kit.smoke import STEPS, miniature

FOLDER = Path(__file__).parents[1] / "presets"
PRESETS = sorted(FOLDER.glob("*.toml"))


@dataclass(frozen=True)
class Nothing:
    pass


@dataclass(frozen=True)
class Lora:
    rank: int = 16
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


@dataclass(frozen=True)
class Model:
    weights: str
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    lora: Lora | None = None
    bits: int = 16

    def __post_init__(self) -> None:
        if self.bits < 16 and self.lora is None:
            raise ValueError("`bits` needs `lora`")


@dataclass(frozen=True)
class Dpo:
    beta: float = 0.1


@dataclass(frozen=True)
class File:
    path: str


@dataclass(frozen=True)
class Count:
    many: int = 10


OURS: dict[type, dict[str, type]] = {
    protocols.Backend: {"toy": Model},
    protocols.Objective: {"sft": Nothing, "dpo": Dpo},
    protocols.DataSource: {"file": File},
    protocols.OptimizerFactory: {"adamw": Nothing},
    protocols.Suite: {"count": Count},
}
TOY: Offers = {kind: Offered(noun, OURS.get(kind, {})) for kind, (noun, _) in OFFERS.items()}

TEXT = """
name = "toy"
[model]
use = "toy"
weights = "w"
lora = { rank = 4 }
[stages.sft]
objective = "sft"
data = [{ use = "file", path = "a" }]
train = { epochs = 1, examples_per_step = 2, learning_rate = 1e-3 }
[stages.dpo]
objective = { use = "dpo", beta = 0.5 }
data = [{ use = "file", path = "b", limit = 7 }]
train = { steps = 3, tokens_per_step = 20, learning_rate = 1e-3 }
model.lora = { rank = 8 }
[stages.evaluate]
suites = ["count"]
"""


def read(folder: Path, text: str = TEXT, *changes: str, offers: Offers = TOY) -> Preset:
    file = folder / "toy.toml"
    file.write_text(text, "utf-8")
    return load(file, offers, changes=changes)


def refusal(folder: Path, text: str, *changes: str) -> str:
    with pytest.raises(PresetError) as caught:
        read(folder, text, *changes)
    return str(caught.value)


def settings(preset: Preset) -> dict[str, tuple[Any, str]]:
    return {setting.path: (setting.value, setting.origin.replace(preset.file, "FILE")) for setting in preset.settings}


def test_a_preset_is_a_pipeline(tmp_path):
    preset = read(tmp_path)
    sft, dpo, evaluate = preset.stages
    assert (preset.name, preset.seed, [stage.name for stage in preset.stages]) == ("toy", 42, ["sft", "dpo", "evaluate"])
    assert isinstance(sft.task, TrainStage)
    assert isinstance(dpo.task, TrainStage)
    assert isinstance(evaluate.task, EvaluateStage)
    assert dpo.task.objective == Dpo(0.5)
    assert [(take.source, take.limit) for take in dpo.task.data] == [(File("b"), 7)]
    assert (sft.model, dpo.model) == (Model("w", lora=Lora(4)), Model("w", lora=Lora(8)))
    assert (sft.changed, dpo.changed) == (frozenset(), frozenset({"lora"}))
    assert evaluate.task.suites == (Count(),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "toy"', "nam = 3", "FILE: does not know the key `nam` (= 3); did you mean `name`?"),
        ("[model]", "[modle]", "FILE: does not know the key `modle` (= {"),
        ('name = "toy"', "", "FILE: needs `name`"),
        ('name = "toy"', 'name = "../up"', "FILE: `name` = '../up': should be letters, digits"),
        ('name = "toy"', 'name = "toy"\nseed = -1', "FILE: `seed` = -1: should be greater than or equal to 0"),
        (
            'name = "toy"',
            'name = "toy"\nneeds = { device = "cuad" }',
            "FILE: [needs] `device` = \"cuad\": should be 'any' or 'cuda'; did you mean `cuda`?",
        ),
        ('use = "toy"', 'use = "tyo"', 'FILE: [model] `use` = "tyo": no plugin offers such a backend; did you mean `toy`?'),
        ('use = "toy"', "", 'FILE: [model] needs `use = "…"`, the name of a backend; there is toy'),
        ('weights = "w"', "", "FILE: [model] needs `weights`"),
        ('weights = "w"', 'weights = "w"\ndtype = "float23"', "did you mean `float32`?"),
        ("rank = 4", "rnak = 4", "FILE: [model.lora] does not know the key `rnak` (= 4); did you mean `rank`?"),
        ("rank = 4", "targets = 4", "FILE: [model.lora] `targets` = 4: should be 'all-linear' or a list"),
        ("rank = 8", "rnak = 8", "FILE: [stages.dpo.model.lora] does not know the key `rnak` (= 8); did you mean `rank`?"),
        ("model.lora = { rank = 8 }", "model.loar = { rank = 8 }", "FILE: [stages.dpo.model] does not know the key `loar`"),
        ("model.lora = { rank = 8 }", "model = 8", "FILE: [stages.dpo] `model` = 8: should be a table"),
        ("[stages.dpo]", "[stages.DPO]", "FILE: [stages.DPO] a stage's name is made of small letters"),
        ("[stages.dpo]", "[stages.superseded]", "FILE: [stages.superseded] `superseded` names another folder of a run"),
        (
            'objective = "sft"',
            'objectiv = "sft"',
            "`teacher` (it distills dialogues) or `suites` (it measures); did you mean `objective`?",
        ),
        (
            'objective = "sft"',
            'objective = "sft"\nsuites = []',
            "FILE: [stages.sft] has `objective` (it trains) and `suites` (it measures): a stage does one thing",
        ),
        (
            'objective = "sft"',
            'objective = "stf"',
            'FILE: [stages.sft.objective] `use` = "stf": no plugin offers such an objective; did you mean `sft`?',
        ),
        ('suites = ["count"]', "suites = []", "FILE: [stages.evaluate] needs at least one table in `suites`"),
        ('suites = ["count"]', 'suites = "count"', 'FILE: [stages.evaluate] `suites` = "count": should be a list of tables'),
        ('data = [{ use = "file", path = "a" }]', "data = []", "FILE: [stages.sft] needs at least one table in `data`"),
        ('data = [{ use = "file", path = "a" }]', 'data = { use = "file", path = "a" }', "FILE: [stages.sft] `data` = {"),
        ('data = [{ use = "file", path = "a" }]', "", "FILE: [stages.sft] needs `data`"),
        ('path = "b", limit', 'path = "b", limt', "FILE: [stages.dpo.data[0]] does not know the key `limt` (= 7); did you mean `limit`?"),
        ("limit = 7", "limit = 0", "FILE: [stages.dpo.data[0]] `limit` = 0: should be greater than 0"),
        ("limit = 7", "fraction = 1.5", "FILE: [stages.dpo.data[0]] `fraction` = 1.5: should be less than or equal to 1"),
        ("epochs = 1, ", "", "FILE: [stages.sft.train] takes either `epochs` or `steps`, and has neither"),
        ("epochs = 1, ", "epochs = 1, steps = 1, ", "FILE: [stages.sft.train] takes either `epochs` or `steps`, not both"),
        ("tokens_per_step = 20, ", "", "FILE: [stages.dpo.train] takes either `examples_per_step` or `tokens_per_step`, and has neither"),
        (
            "learning_rate = 1e-3",
            "lerning_rate = 1e-3",
            "FILE: [stages.sft.train] does not know the key `lerning_rate` (= 0.001); did you mean `learning_rate`?",
        ),
        ("learning_rate = 1e-3", "learning_rate = '1e-3'", 'FILE: [stages.sft.train] `learning_rate` = "1e-3": should be a number'),
        ("learning_rate = 1e-3", "learning_rate = inf", "FILE: [stages.sft.train] `learning_rate` = Infinity: should be a finite number"),
        (
            "epochs = 1",
            "schedule = 'cosin'",
            "[stages.sft.train] `schedule` = \"cosin\": should be 'constant', 'cosine' or 'linear'; did you mean `cosine`?",
        ),
        (
            "epochs = 1",
            "optimizer = 'adam'",
            '[stages.sft.train.optimizer] `use` = "adam": no plugin offers such an optimizer; did you mean `adamw`?',
        ),
        ("epochs = 1", "epochs = 1987-12-31", 'FILE: [stages.sft.train] `epochs` = "1987-12-31": should be a text, a number'),
        ("name =", "name", "FILE: not a TOML file: Expected '=' after a key in a key/value pair (at line 2, column 6)"),
        ("[model]", "[model]\n[model]", "FILE: not a TOML file: Cannot declare ('model',) twice (at line 4"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, old, new, message):
    assert old in TEXT
    said = refusal(tmp_path, TEXT.replace(old, new, 1)).replace(str(tmp_path / "toy.toml"), "FILE")
    assert message in said
    assert said.startswith("FILE: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs `name`"),
        ('name = "a"', "needs a table [model]"),
        ('name = "a"\nmodel = 3', "needs a table [model]"),
        (TEXT[: TEXT.index("[stages")], "needs at least one table [stages.NAME]"),
        (TEXT[: TEXT.index("[stages")] + "[stages]\nsft = 3", "[stages] `sft` = 3: should be a table"),
        (
            TEXT[: TEXT.index("[stages")] + TEXT[TEXT.index("[stages.evaluate") :],
            "[stages.evaluate] measures models, but no stage before it trains one",
        ),
    ],
)
def test_what_every_preset_needs(tmp_path, text, message):
    assert refusal(tmp_path, text).endswith(message)


def test_a_file_that_is_no_text_is_named_with_its_line(tmp_path):
    file = tmp_path / "latin.toml"
    file.write_bytes(b'name = "a"\ndescription = "caf\xe9"\n')
    with pytest.raises(PresetError, match=r"latin.toml: not UTF-8: byte 0xe9 at line 2"):
        read_toml(file)
    with pytest.raises(PresetError, match=r"nowhere.toml: cannot be read: No such file"):
        read_toml(tmp_path / "nowhere.toml")
    with pytest.raises(PresetError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)
    file.write_bytes(b'\xef\xbb\xbfname = "a"\r\n')
    assert read_toml(file) == {"name": "a"}


def test_an_override_is_told_apart_from_what_it_inherits(tmp_path):
    told = settings(read(tmp_path))
    assert told["model.lora.rank"] == (4, "FILE")
    assert told["stages.dpo.model.lora.rank"] == (8, "FILE")
    assert told["stages.dpo.model.weights"] == ("w", "[model]")
    assert told["stages.dpo.model.use"] == ("toy", "[model]")
    assert told["stages.dpo.model.dtype"] == ("bfloat16", f"default of {__name__}")
    assert not [path for path in told if path.startswith("stages.sft.model")]
    text = TEXT.replace("lora = { rank = 4 }", "lora = { rank = 4 }\nbits = 4").replace("model.lora = { rank = 8 }", 'model.lora = "r"')
    assert '[stages.dpo.model] `lora` = "r": should be a table' in refusal(tmp_path, text)
    text = TEXT.replace("lora = { rank = 4 }", "").replace("model.lora = { rank = 8 }", "model.bits = 4")
    assert refusal(tmp_path, text).endswith("[stages.dpo.model] `bits` needs `lora` (partly from [model])")


def test_every_value_has_an_origin(tmp_path):
    told = settings(read(tmp_path, TEXT, "stages.dpo.objective.beta=2", "seed=1"))
    assert told["stages.dpo.objective.beta"] == (2, "command line")
    assert told["stages.dpo.objective.use"] == ("dpo", "FILE")
    assert told["seed"] == (1, "command line")
    assert told["name"] == ("toy", "FILE")
    assert told["stages.dpo.data[0].limit"] == (7, "FILE")
    assert told["stages.dpo.data[0].fraction"] == (1.0, "default of zephyr_kit")
    assert told["stages.dpo.train.optimizer.use"] == ("adamw", "default of zephyr_kit")
    assert told["stages.dpo.model.bits"] == (16, f"default of {__name__}")


def test_changes_are_typed_and_repeatable(tmp_path):
    preset = read(
        tmp_path,
        TEXT,
        "seed = 7",
        "stages.sft.data[0].limit=5",
        "stages.sft.train={ steps = 1, examples_per_step = 4, learning_rate = 1 }",
        "stages.sft.train.clip=0.5",
        "stages.dpo.objective.beta=1",
        "stages.dpo.objective.beta=2",
        "model.weights=org/name with spaces",
        'model.lora.targets=["q", "v"]',
        "stages.evaluate.suites[0].many=3",
        "stages.dpo.data[0].path=1987-12-31",
        "description=",
    )
    sft, dpo, evaluate = (stage.task for stage in preset.stages)
    assert (preset.seed, preset.description) == (7, "")
    assert sft.data[0].limit == 5
    assert (sft.train.steps, sft.train.epochs, sft.train.clip) == (1, None, 0.5)
    assert dpo.objective == Dpo(2.0)
    assert dpo.data[0].source == File("1987-12-31")
    assert preset.stages[0].model == Model("org/name with spaces", lora=Lora(4, ("q", "v")))
    assert preset.stages[1].model.lora == Lora(8)
    assert evaluate.suites == (Count(3),)
    assert preset.table["stages"]["evaluate"] == {"suites": [{"use": "count", "many": 3}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "--set seed: write it as path.to.key=value, as in stages.dpo.objective.beta=0.05"),
        ("=3", "--set =3: write it as path.to.key=value"),
        ("stages..sft=3", "write it as path.to.key=value"),
        ("stages.sft.data[x].limit=3", "write it as path.to.key=value"),
        ("seeed=3", "FILE: does not know the key `seeed` (= 3); did you mean `seed`? (from command line)"),
        ("modle.weights=w", 'FILE: does not know the key `modle` (= {"weights": "w"}); did you mean `model`? (partly from command line)'),
        ("seed=soon", 'FILE: `seed` = "soon": should be a whole number (from command line)'),
        ("seed.x=3", "FILE: --set seed.x=3: seed is 42, not a table"),
        ("stages.dop.objective.beta=1", "FILE: --set stages.dop.objective.beta=1: there is no stage `dop`; did you mean `dpo`?"),
        (
            "stages.sft.objective.beta=1",
            "FILE: [stages.sft.objective] does not know the key `beta` (= 1); there is none (from command line)",
        ),
        (
            "stages.sft.objective=dop",
            'FILE: [stages.sft.objective] `use` = "dop": no plugin offers such an objective; did you mean `dpo`? (from command line)',
        ),
        (
            "stages.sft.data[1].limit=1",
            "FILE: --set stages.sft.data[1].limit=1: there is no stages.sft.data[1]; the list has 1, counted from 0",
        ),
        (
            "stages.sft.data.limit=1",
            "FILE: --set stages.sft.data.limit=1: stages.sft.data is a list; say which of it, as in stages.sft.data[0]",
        ),
        ("stages.sft[0]=1", "FILE: --set stages.sft[0]=1: stages.sft is no list, so there is no stages.sft[0]"),
        ("stages.sft.train.steps=1", "FILE: [stages.sft.train] takes either `epochs` or `steps`, not both (partly from command line)"),
        (
            "stages.sft.trian.steps=1",
            'FILE: [stages.sft] does not know the key `trian` (= {"steps": 1}); did you mean `train`? (partly from command line)',
        ),
    ],
)
def test_a_wrong_change_is_named(tmp_path, change, message):
    text = TEXT.replace('name = "toy"', 'name = "toy"\nseed = 42')
    assert message in refusal(tmp_path, text, change).replace(str(tmp_path / "toy.toml"), "FILE")


def test_the_table_as_written_resolves_to_the_same(tmp_path):
    """What a run folder keeps is enough to repeat the run."""
    preset = read(tmp_path, TEXT, "seed=3", "stages.dpo.objective=sft")
    again = read(tmp_path, tomli_w.dumps(preset.table))
    assert replace(again, settings=()) == replace(preset, settings=())
    assert [(s.path, s.value) for s in again.settings] == [(s.path, s.value) for s in preset.settings]


@pytest.fixture(scope="module")
def installed() -> Offers:
    return Plugins().offers


@pytest.fixture(scope="module")
def validator(installed) -> jsonschema.Draft202012Validator:
    schema = preset_schema(installed)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_a_preset_of_ours_resolves_whole_and_in_miniature(file, installed, validator, tmp_path):
    preset = load(file, installed)
    assert preset.name == file.stem
    assert len(preset.description) > 20
    small = miniature(preset, tmp_path)
    assert [stage.name for stage in small.stages] == [stage.name for stage in preset.stages]
    for stage, whole in zip(small.stages, preset.stages, strict=True):
        assert type(stage.model) is type(whole.model)
        if isinstance(stage.task, TrainStage):
            assert stage.task.train.steps == STEPS
            assert stage.task.objective == whole.task.objective
            assert not [problem for take in (*stage.task.data, *stage.task.held_out) for problem in take.source.problems()]
    assert list(validator.iter_errors(read_toml(file))) == []


def test_there_are_presets():
    assert {"quickstart", "zephyr-7b-full", "zephyr-qlora", "zephyr-ipo"} <= {file.stem for file in PRESETS}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("nmae", "x"),
        ("seed", "soon"),
        ("model.use", "nothing"),
        ("model.wieghts", "x"),
        ("model.lora.rank", 0),
        ("model.lora.targets", 3),
        ("stages.DPO", {}),
        ("stages.dpo.objective.beta", -1),
        ("stages.dpo.objective.bta", 1),
        ("stages.dpo.data", {"use": "jsonl", "path": "x"}),
        ("stages.dpo.data", [{"use": "jsonl"}]),
        ("stages.dpo.data", [{"use": "jsonl", "path": "x", "limt": 3}]),
        ("stages.dpo.train.schedule", "cosin"),
        ("stages.dpo.train.optimizer", "adam"),
        ("stages.dpo.model.lora.rnk", 8),
    ],
)
def test_the_schema_refuses_what_a_preset_may_not_say(validator, path, value):
    table = read_toml(FOLDER / "zephyr-qlora.toml")
    *way, last = path.split(".")
    place = table
    for step in way:
        place = place[step]
    place[last] = value
    assert not validator.is_valid(table)


def test_the_schema_explains_itself(installed):
    schema = preset_schema(installed)
    tables = [choice["properties"] for choice in schema["$defs"]["objective"]["oneOf"] if "properties" in choice]
    assert {"sft", "dpo", "ipo"} <= {table["use"]["const"] for table in tables}
    train = schema["properties"]["stages"]["additionalProperties"]["oneOf"][0]["properties"]["train"]
    assert "learning rate rises" in train["properties"]["warmup"]["description"]
    assert train["properties"]["warmup"]["default"] == 0.0
    assert train["properties"]["optimizer"]["default"] == "adamw"


@pytest.mark.parametrize(
    ("objective", "best", "told"),
    [
        ("sft", "heldout/loss", "there is no such metric; did you mean `held_out/loss`?"),
        ("dpo", "held_out/reward/margn", "there is no such metric; did you mean `held_out/reward/margin`?"),
        ("kto", "reward/chosn", "there is no such metric"),
        ("dpo", "reward/margin", ""),
        ("dpo", "held_out/loss", ""),
        ("sft", "gradient_norm", ""),
    ],
)
def test_the_best_is_kept_by_what_will_be_measured(objective, best, told):
    rows = [{"use": "jsonl", "path": "rows.jsonl"}]
    train = {"steps": 1, "examples_per_step": 1, "learning_rate": 1.0, "keep_best": best}
    stage = {"objective": objective, "data": rows, "held_out": rows, "train": train}
    table = {"name": "x", "model": {"use": "mistral", "weights": "y/z"}, "stages": {"one": stage}}
    if not told:
        resolve(table, Plugins().offers, file="x.toml")
        return
    with pytest.raises(PresetError) as caught:
        resolve(table, Plugins().offers, file="x.toml")
    assert str(caught.value).startswith(f'x.toml: [stages.one] `train.keep_best` = "{best}": {told}')


def test_every_objective_tells_its_metrics_beforehand():
    for name, cls in Plugins().offered(protocols.Objective).items():
        with suppress(TypeError, ValueError):  # one whose table needs keys
            assert protocols.metrics_of(cls()) is not None, name

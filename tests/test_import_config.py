"""`zkit import-config`: nothing of a file is dropped in silence, and what cannot be understood is told by line and key."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from test_cli import call
from zkit_import.axolotl import FORMAT as AXOLOTL
from zkit_import.command import FORMATS as NAMES
from zkit_import.importing import FORMATS, import_files
from zkit_import.said import Carry, ConfigError
from zkit_import.templates import recognised

from zephyr_kit.plugins import Plugins
from zephyr_kit.preset import resolve

TRL = """
model_name_or_path: some/model
dataset_name: some/data
learning_rate: 5e-7
num_train_epochs: 1
"""
DPO = f"{TRL}beta: 0.1\n"
AXO = """
base_model: some/model
datasets:
  - path: some/data
    type: chat_template
micro_batch_size: 2
sequence_len: 1024
learning_rate: 1e-4
num_epochs: 2
"""
LLAMA = """
model_name_or_path: some/model
stage: sft
finetuning_type: full
dataset: mine
learning_rate: 1e-5
"""
HANDBOOK = """
model_name_or_path: some/model
dataset_mixer:
  some/data: 0.5
  other/data: 1.0
dataset_splits: [train_sft, test_sft]
learning_rate: 2e-5
output_dir: data/sft
"""


def table(folder: Path, *texts: str, **options):
    files = []
    for number, text in enumerate(texts):
        files.append(folder / f"config-{number}.yaml")
        files[-1].write_text(text, "utf-8")
    made = import_files(files, **options)
    return tomllib.loads(made.text), made


def left(made, number=0):
    return {each.key: each for each in made.drafts[number].said.left}


def test_the_formats_that_can_be_named_are_those_there_are():
    assert set(NAMES) == {each.name for each in FORMATS}


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_key_has_a_reason_or_a_place(form):
    for key, rule in form.keys.items():
        assert rule.to if isinstance(rule, Carry) else rule.reason, key


@pytest.mark.parametrize(("text", "name"), [(TRL, "trl"), (AXO, "axolotl"), (LLAMA, "llama-factory"), (HANDBOOK, "alignment-handbook")])
def test_a_format_is_recognised_by_its_keys(text, name, tmp_path):
    read, made = table(tmp_path, text)
    assert made.drafts[0].format == name
    assert resolve(read, Plugins().offers, file="imported.toml").stages


def test_unknown_keys_are_told_with_a_near_one(tmp_path):
    _, made = table(tmp_path, f"{TRL}learnig_rate: 1\nmade_up: {{a: 1}}\n")
    assert left(made)["learnig_rate"].reason == "not a key that is known here; did you mean `learning_rate`?"
    assert (left(made)["made_up"].line, left(made)["made_up"].matters) == (7, True)


def test_unknown_keys_inside_data_are_told_too(tmp_path):
    _, made = table(tmp_path, AXO.replace("    type:", "    made_up: 1\n    type:"))
    assert left(made)["datasets[0].made_up"].line == 5


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_key_of_a_file_is_in_the_preset_or_in_the_list(form, tmp_path):
    """Whatever keys a file has, each was taken as a fact or is listed."""
    from zkit_import.said import Said, hear
    from zkit_import.yaml_file import read_yaml

    file = tmp_path / "all.yaml"
    file.write_text("".join(f"{key}: 1\n" for key in form.keys) + "no_such_key: 1\n", "utf-8")
    for key, value in read_yaml(file).items():
        one = tmp_path / "one.yaml"
        one.write_text(f"{key}: {value}\n", "utf-8")
        said = Said(str(one))
        with suppress(ConfigError):  # a value that does not fit
            hear(read_yaml(one), form.keys, said)
            assert [each.key for each in said.left] == [key] or [fact.key for fact in said.facts.values()] == [key]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{TRL}beta: lots\n", "line 6: `beta` = 'lots': should be a number, 0 or more"),
        (f"{TRL}learning_rate: 1\n", "line 6: the key `learning_rate` stands twice"),
        (f"{TRL}bf16: maybe\n", "line 6: `bf16` = 'maybe': should be true or false"),
        (
            f"{DPO}loss_type: kto_pair\n",
            "line 7: `loss_type` = 'kto_pair': cannot be imported: it takes its reference point from a micro-batch",
        ),
        (f"{DPO}output_dir: data/zephyr-orpo-7b\n", "line 7: `output_dir` = 'data/zephyr-orpo-7b' tells of orpo"),
        (f"{TRL}max_seq_length: 10\nmax_length: 20\n", "line 7: `max_length` = 20, but `max_seq_length` in line 6 says 10: leave one out"),
        (f"{TRL}x: !!python/object/apply:os.system [ls]\n", "line 6: could not determine a constructor for the tag"),
        (f"{TRL}x: [1\n", "line 7: "),
        ("- 1\n", "should hold keys and values"),
        ("a: 1\n", "its keys do not tell whose configuration it is; say so: --from trl or "),
        (TRL.replace("model_name_or_path", "modle"), "whose configuration"),
        (TRL.replace("dataset_name", "dataset_nam"), "names no data set to train on"),
        (AXO.replace("base_model: some/model", "rl: dpo"), "names no model (base_model)"),
        (f"{AXO}rl: grpo\n", "line 10: `rl` = 'grpo': cannot be imported: of `rl`, dpo, ipo and simpo can"),
        (f"{LLAMA}quantization_bit: four\n", "line 7: `quantization_bit` = 'four': should be a whole number"),
    ],
)
def test_bad_files_are_told_by_file_line_and_key(text, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        table(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "config-0.yaml"))
    assert message in str(caught.value)


NAMES_OF_FILES = [
    (("hb_sft.yaml", "hb_dpo.yml"), None, "hb_sft-hb_dpo"),
    (("axo.yml.yaml",), None, "axo"),
    (("sft.yaml",), "a.yamlb.yml.toml", "a-b"),
    (("sft.yaml",), "zephyr-v0.2.toml", "zephyr-v0.2"),
]


@pytest.mark.parametrize(("files", "out", "name"), NAMES_OF_FILES)
def test_a_preset_is_named_without_the_endings_of_files(files, out, name, tmp_path):
    for file in files:
        (tmp_path / file).write_text(TRL, "utf-8")
    made = import_files([tmp_path / file for file in files], out=None if out is None else tmp_path / out)
    assert tomllib.loads(made.text)["name"] == name


def test_a_switch_that_is_needless_here_is_known(tmp_path):
    _, made = table(tmp_path, f"{TRL}no_remove_unused_columns: true\nstreaming: true\n")
    assert {key: each.matters for key, each in left(made).items()} == {"no_remove_unused_columns": False, "streaming": False}


def test_numbers_that_yaml_takes_for_texts_are_numbers(tmp_path):
    read, _ = table(tmp_path, TRL)
    assert read["stages"]["sft"]["train"]["learning_rate"] == 5e-7


@pytest.mark.parametrize(
    ("extra", "train"),
    [
        ("max_steps: 500\nwarmup_steps: 50\n", {"steps": 500, "warmup": 0.1}),
        ("max_steps: 25\nwarmup_steps: 7\n", {"steps": 25, "warmup": 0.26}),
        ("warmup_steps: 0.1\n", {"warmup": 0.1}),
        ("lr_scheduler_type: constant\nwarmup_ratio: 0.1\n", {"schedule": "constant"}),
        ("lr_scheduler_type: constant_with_warmup\nwarmup_ratio: 0.1\n", {"schedule": "constant", "warmup": 0.1}),
        ("weight_decay: 0.01\nadam_beta2: 0.95\n", {"optimizer": {"use": "adamw", "weight_decay": 0.01, "beta2": 0.95}}),
    ],
)
def test_what_is_derived(extra, train, tmp_path):
    read, _ = table(tmp_path, TRL + extra)
    ours = read["stages"]["sft"]["train"]
    assert {key: ours[key] for key in train} == train
    assert ("warmup" in ours) == ("warmup" in train)


@pytest.mark.parametrize("steps", range(1, 60))
def test_a_warm_up_in_steps_is_so_many_steps(steps):
    import math

    from zkit_import.drafting import _share

    for warmup in range(1, steps + 1):
        assert math.ceil(_share(warmup, steps) * steps) == warmup


def test_what_has_no_counterpart_is_taken_for_something_and_told(tmp_path):
    read, made = table(
        tmp_path, f"{TRL}optim: rmsprop\nlr_scheduler_type: inverse_sqrt\nwarmup_steps: 100\nfp16: true\npush_to_hub: true\n"
    )
    train = read["stages"]["sft"]["train"]
    assert (train["optimizer"], train["schedule"], "warmup" in train) == ("adamw", "cosine", False)
    told = left(made)
    assert told["optim"].reason == 'there is no such optimizer here; taken for "adamw"'
    assert told["warmup_steps"].near == "train.warmup"
    assert "write `warmup = 100 / STEPS` as one number" in told["warmup_steps"].reason
    assert told["fp16"].near == "model.dtype"
    assert {key for key, each in told.items() if not each.matters} == {"push_to_hub"}


def test_what_the_other_keys_make_idle_is_told(tmp_path):
    _, made = table(tmp_path, f"{TRL}eval_steps: 50\nlora_r: 8\nlora_alpha: 16\nmax_steps: 9\nbnb_4bit_quant_type: nf4\n")
    idle = "has no effect here beside the file's other keys"
    assert {key for key, each in left(made).items() if each.reason == idle} == {
        *("eval_steps", "lora_r", "lora_alpha", "num_train_epochs", "bnb_4bit_quant_type"),
    }


def test_each_file_of_a_data_set_is_a_table(tmp_path):
    read, _ = table(tmp_path, AXO.replace("    type:", "    data_files: [a.jsonl, b.json]\n    type:"))
    assert [(each["use"], each["path"]) for each in read["stages"]["sft"]["data"]] == [("jsonl", "a.jsonl"), ("json", "b.json")]


def test_data_sets_are_mixed_by_share(tmp_path):
    read, _ = table(tmp_path, HANDBOOK)
    stage = read["stages"]["sft"]
    assert stage["data"] == [
        {"use": "hub", "path": "some/data", "split": "train_sft", "format": "messages", "fraction": 0.5},
        {"use": "hub", "path": "other/data", "split": "train_sft", "format": "messages"},
    ]
    assert (read["model"]["template"], read["model"]["system"]) == ("zephyr", "")


def test_local_data_sets_are_looked_up(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"mine": {"file_name": "m.json", "columns": {"prompt": "q", "response": "a"}}}')
    read, made = table(tmp_path, LLAMA)
    columns = {"instruction": "q", "output": "a"}
    assert read["stages"]["sft"]["data"] == [{"use": "json", "path": str(tmp_path / "data/m.json"), "format": "alpaca", "columns": columns}]
    assert "dataset" not in left(made)
    _, lost = table(tmp_path, LLAMA.replace("mine", "yours"))
    assert "what `yours` is stands in dataset_info.json" in left(lost)["dataset"].reason


def test_a_later_stage_starts_from_the_one_before(tmp_path):
    _, made = table(tmp_path, HANDBOOK, DPO.replace("some/model", "me/sft"))
    assert left(made, 1)["model_name_or_path"].reason == "is what the stage before leaves"
    _, made = table(tmp_path, HANDBOOK, DPO)
    assert left(made, 1)["model_name_or_path"].matters
    with pytest.raises(ConfigError, match="is trained with all weights, but the stage before leaves an adapter"):
        table(tmp_path, f"{HANDBOOK}use_peft: true\n", DPO)


ZEPHYRS = "{% for message in messages %}\n{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}\n{% endfor %}"


def test_a_template_is_recognised_by_what_it_writes_or_written_beside(tmp_path):
    assert recognised(ZEPHYRS) == "zephyr"
    assert recognised("{{ 1 / 0 }}") is None
    own = f"{HANDBOOK}chat_template: \"{{% for message in messages %}}{{{{ message['content'] }}}}{{% endfor %}}\"\n"
    read, made = table(tmp_path, own, out=tmp_path / "mine.toml")
    assert (read["name"], read["model"]["template"]) == ("mine", str(tmp_path / "mine.jinja"))
    assert made.template[1].startswith("{% for message")
    read, made = table(tmp_path, own)
    assert "with --out it is written beside the preset" in left(made)["chat_template"].reason


def test_the_command_writes_a_preset_and_lists_what_is_left(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sft.yaml").write_text(f"{HANDBOOK}per_device_train_batch_size: 16\nmade_up: 1\nlogging_steps: 5\nreport_to: wandb\n", "utf-8")
    Path("dpo.yaml").write_text(DPO, "utf-8")
    code, out, err = call(capsys, "import-config", "sft.yaml", "dpo.yaml", "--devices", "8", "--out", "mine.toml")
    assert (code, err) == (0, "")
    assert "sft.yaml: alignment-handbook, sft, by its keys\n  not carried over:\n    line 10: made_up = 1: not a key" in out
    assert "    logging_steps, report_to: every step is in metrics.jsonl" in out
    text = Path("mine.toml").read_text("utf-8")
    assert "tokens_per_step = 262_144  # 16 rows x 1 accumulated x 8 devices, packed to 2,048 tokens each\n" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dpo.yaml", "mine.toml", "sft.yaml"]
    assert call(capsys, "presets", "show", "mine.toml")[0] == 0
    code, out, err = call(capsys, "import-config", "dpo.yaml")
    assert tomllib.loads(out)["stages"]["dpo"]["objective"] == {"use": "dpo", "beta": 0.1}
    assert err.startswith("dpo.yaml: trl, dpo, by its keys\n")
    Path("bad.yaml").write_text(f"{DPO}loss_type: [sigmoid, aot]\n", "utf-8")
    code, out, err = call(capsys, "import-config", "bad.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("error: bad.yaml, line 7: `loss_type`")


def test_axolotl_drops_what_is_too_long_unless_told_otherwise(tmp_path):
    assert table(tmp_path, AXO)[0]["stages"]["sft"]["too_long"] == "drop"
    assert "too_long" not in table(tmp_path, f"{AXO}excess_length_strategy: truncate\n")[0]["stages"]["sft"]
    assert AXOLOTL.defaults("sft", table(tmp_path, AXO)[1].drafts[0].said)["warmup"] == 0.03


@pytest.mark.parametrize("key", ["context_parallel_size", "sequence_parallel_degree"])
def test_devices_that_share_a_row_count_as_one_taker(tmp_path, key):
    read, made = table(tmp_path, AXO + f"{key}: 2\n", devices=8)
    alone, _ = table(tmp_path, AXO, devices=4)
    ours = read["stages"]["sft"]["train"]
    assert ours.pop("context_parallel") == 2
    assert ours == alone["stages"]["sft"]["train"]
    assert "4 teams of 2 devices" in made.text

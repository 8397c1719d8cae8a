"""Every preset runs whole in miniature; and says at once what a machine lacks for the real thing."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from zephyr_kit import cli, hookimpl
from zephyr_kit.observe import Run
from zephyr_kit.plugins import Plugins

PRESETS = sorted((Path(__file__).parent.parent / "presets").glob("*.toml"))
REAL = [preset for preset in PRESETS if "needs" in preset.read_text("utf-8")]


def zkit(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_it_runs_whole_in_miniature(preset, tmp_path, capsys):
    assert zkit("run", preset, "--smoke", "--output", tmp_path / "run") == 0
    trained = sorted(path.parent.name for path in (tmp_path / "run").glob("*/model") if path.parent.name != "smoke")
    assert len(trained) >= 2
    stages = tomllib.loads(preset.read_text("utf-8"))["stages"]
    for name in trained:
        lines = [json.loads(line) for line in (tmp_path / "run" / name / "metrics.jsonl").read_text("utf-8").splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
        assert any("held_out/loss" in line for line in lines) == ("held_out" in stages[name])
        assert (tmp_path / "run" / name / "model" / "README.md").exists()
        assert list((tmp_path / "run" / name / "model").glob("*.safetensors"))
    assert "report" in capsys.readouterr().out


@pytest.mark.parametrize("preset", REAL, ids=lambda path: path.stem)
def test_it_says_what_is_missing_and_what_to_do(preset, tmp_path, capsys):
    assert zkit("run", preset, "--device", "cpu", "--output", tmp_path / "run") == 1
    said = capsys.readouterr().err
    assert "cannot run here" in said
    assert "[needs] a CUDA GPU with" in said
    assert "mistralai/Mistral-7B-v0.1" in said
    assert "HuggingFaceH4/ultrachat_200k" in said
    assert "hf download" in said
    assert "--smoke" in said
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_told(tmp_path, capsys):
    assert zkit("run", "quickstart", "--set", "needs.memory=100000", "--output", tmp_path / "run") == 1
    assert "[needs] 100000 GiB of memory on the device (cpu): this one has" in capsys.readouterr().err


def test_an_observer_that_raises_is_told_of_once_and_stops_nothing():
    heard = []
    good = SimpleNamespace(zkit_held_out=hookimpl(lambda step, metrics: heard.append((step, metrics))))

    @hookimpl
    def bad(run, step):
        raise ConnectionError(f"no server at step {step} of {run.name}")

    plugins = Plugins(good, discover=False)
    plugins.add(SimpleNamespace(zkit_held_out=bad), "tracker")
    run = Run("name", "sft", Path(), 3)
    told = [plugins.tell("zkit_held_out", run=run, step=step, metrics={"loss": 1.0}) for step in (1, 2)]
    assert told == [["plugin tracker is broken: zkit_held_out raised ConnectionError: no server at step 1 of name; training goes on"], []]
    assert heard == [(1, {"loss": 1.0}), (2, {"loss": 1.0})]

"""Sweeps: every combination, what is equal made once, mean and spread over seeds; killed and continued; a failure named."""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import barriers, chromium, opened
from made_runs import write_run
from tiny_presets import FROM_SCRATCH

from zephyr_kit import cli
from zephyr_kit.cli import child
from zephyr_kit.cli.sweep import _state
from zephyr_kit.config import PresetError
from zephyr_kit.metrics import MetricLog
from zephyr_kit.sweep.grid import Axis, combinations, short_names
from zephyr_kit.sweep.plots import curve_plots
from zephyr_kit.sweep.spread import Outcome, Spread, figures_of
from zephyr_kit.sweep.view import View, taken

pytestmark = pytest.mark.usefixtures("rehearsed_once")

TINY = """
name = "tiny"
""" + FROM_SCRATCH + """[stages.sft]
objective = "sft"
data = [{ use = "quickstart", part = "chat", count = 8 }]
max_length = 512
train = { steps = 2, examples_per_step = 4, learning_rate = 1e-3 }
[stages.dpo]
objective = { use = "dpo", beta = 0.1 }
data = [{ use = "jsonl", path = "PAIRS" }]
held_out = [{ use = "jsonl", path = "PAIRS", limit = 4 }]
max_length = 512
train = { steps = 3, examples_per_step = 4, learning_rate = 1e-2 }
"""
BETAS = "stages.dpo.objective.beta=0.01,0.1,1.0"


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    pairs = [{"prompt": f"Say {n}.", "chosen": f"{n}, with pleasure.", "rejected": "No." * (n % 3 + 1)} for n in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    file = folder / "tiny.toml"
    file.write_text(TINY.replace("PAIRS", str(folder / "pairs.jsonl")), "utf-8")
    return file


def here(arguments):
    """In this process, in place of one of its own."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return child.Ended(caught.value.code, "it cannot be done" if caught.value.code else "")


def sweep(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(["sweep", *map(str, arguments)])
    return caught.value.code


@pytest.fixture(scope="module")
def swept(preset, tmp_path_factory):
    """Three betas and two seeds, and all that was said."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch, (folder / "said.txt").open("w") as said:
        patch.setattr(child, "zkit", here)
        patch.setenv("ZKIT_CACHE", str(folder / "cache"))
        patch.setattr(sys, "stdout", said)
        assert sweep(preset, "--grid", BETAS, "--grid", "seed=1,2", "--output", folder / "sweep") == 0
    return folder / "sweep", (folder / "said.txt").read_text("utf-8")


def test_what_is_equal_is_made_once(swept):
    folder, said = swept
    told = json.loads((folder / "sweep.json").read_text("utf-8"))
    assert [run["name"] for run in told["runs"]] == [f"beta-{beta}_seed-{seed}" for beta in ("0.01", "0.1", "1.0") for seed in (1, 2)]
    assert {run["state"] for run in told["runs"]} == {"finished"}
    assert [list(run["taken"]) for run in told["runs"]] == [[], [], ["sft"], ["sft"], ["sft"], ["sft"]]
    assert said.count("sft step 2/2") == 2
    for seed in (1, 2):
        weights = [file.read_bytes() for file in folder.glob(f"*_seed-{seed}/sft/model/model.safetensors")]
        assert len(weights) == 3
        assert len(set(weights)) == 1
    assert said.count("reference scores of data: 0 completions known, 16 to score") == 2
    assert said.count("reference scores of data: 16 completions known, 0 to score") == 4


def test_a_taken_stage_tells_where_it_was_made(swept):
    folder, _ = swept
    notes = json.loads((folder / "beta-1.0_seed-2" / "run.json").read_text("utf-8"))
    taken = [note for note in notes if note["stage"] == "sft"]
    assert [Path(note["taken_from"]).relative_to(folder).parts for note in taken] == [("beta-0.01_seed-2", "sft")]
    assert taken[0]["packages"]["torch"]


def test_the_report_has_mean_and_spread_over_seeds(swept):
    folder, _ = swept
    told = json.loads((folder / "sweep.json").read_text("utf-8"))
    page = (folder / "sweep.md").read_text("utf-8")
    for setting in told["settings"]:
        beta = setting["choices"]["stages.dpo.objective.beta"]
        logs = [MetricLog(folder / f"beta-{beta}_seed-{seed}" / "dpo" / "metrics.jsonl") for seed in (1, 2)]
        losses = [next(line["held_out/loss"] for line in log.lines() if "held_out/loss" in line) for log in logs]
        spread = setting["stages"]["dpo"]["held_out/loss"]
        assert spread["count"] == 2
        assert spread["mean"] == pytest.approx(statistics.fmean(losses))
        assert spread["deviation"] == pytest.approx(statistics.stdev(losses)) != 0
        assert f"| beta={beta} | 2 | {Spread.of(losses)} |" in page
    assert "Made 2 times, for 6 runs." in page


@pytest.mark.slow
def test_the_page_has_plots_with_spread_and_bands(swept):
    folder, _ = swept
    spreads = [setting["stages"]["dpo"]["held_out/loss"] for setting in json.loads((folder / "sweep.json").read_text("utf-8"))["settings"]]
    with chromium() as browser, opened(browser, (folder / "sweep.html").as_uri()) as page:
        page.locator("html[data-ready]").wait_for()
        page.locator("#figures .main-svg").first.wait_for()
        drawn = page.evaluate("document.querySelector('#figures .plot.drawn').data.map((trace) => [trace.x[0], trace.error_x.array[0]])")
        assert drawn == [[spread["mean"], spread["deviation"]] for spread in spreads]
        for tab in ("Runs", "Figures", "Curves"):
            page.get_by_role("tab", name=tab).click()
            assert barriers(page) == []
            page.screenshot(path=folder / f"{tab}.png", full_page=True)
        areas = page.evaluate("[...document.querySelectorAll('#curves .js-fill')].map((area) => area.getAttribute('d').length)")
        assert max(areas) > len("M0,0Z")
        page.get_by_role("checkbox", name="beta=0.01").uncheck()
        page.get_by_text("logarithmic").click()
        page.locator("fieldset").get_by_text("dark").click()
        assert barriers(page) == []


def test_the_same_command_starts_nothing_anew_and_a_larger_grid_only_what_is_new(swept, preset, monkeypatch, tmp_path, capsys):
    folder, _ = swept
    shutil.copytree(folder, tmp_path / "sweep")
    monkeypatch.setattr(child, "zkit", here)
    assert sweep(preset, "--grid", BETAS, "--grid", "seed=1", "--output", tmp_path / "sweep") == 0
    said = capsys.readouterr().out
    assert "step" not in said
    assert said.count("stage dpo: done before, nothing changed") == 3
    assert sweep(preset, "--grid", "stages.dpo.objective.beta=0.5", "--grid", "seed=1,3", "--output", tmp_path / "sweep", "--table") == 0
    assert "2 combinations: 2 not finished" in (tmp_path / "sweep" / "sweep.md").read_text("utf-8")


def test_a_failed_combination_loses_no_other_and_is_named(preset, tmp_path, capfd, monkeypatch):
    """That one in a process of its own; and no SFT at all, as in the paper's ablation."""
    apart = child.zkit
    monkeypatch.setattr(child, "zkit", lambda arguments: apart(arguments) if any("1e30" in word for word in arguments) else here(arguments))
    grid = ("--grid", "stages.sft=false", "--grid", "stages.dpo.train.learning_rate=1e30,1e-3")
    assert sweep(preset, *grid, "--set", "stages.dpo.train.steps=4", "--output", tmp_path / "sweep") == 1
    error = capfd.readouterr().err
    assert "1 of 2 combinations failed; the same command tries them again:\n  sft-false_learning_rate-1e30: stages.dpo, step " in error
    bad, good = json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8"))["runs"]
    assert (bad["state"], good["state"]) == ("failed", "finished")
    assert "no finite loss or gradient" in bad["reason"]
    assert sorted(good["stages"]) == ["dpo"]
    assert f"- `{bad['name']}` failed: {bad['reason']}" in (tmp_path / "sweep" / "sweep.md").read_text("utf-8")


def test_asked_to_stop_it_passes_that_on_and_goes_on_later(preset, tmp_path, monkeypatch, capsys):
    arguments = ("sweep", str(preset), "--grid", "seed=1,2", "--set", "stages.sft.train.steps=150", "--output", str(tmp_path / "sweep"))
    command = [sys.executable, "-m", "zephyr_kit", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        metrics = tmp_path / "sweep" / "seed-1" / "sft" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert list((tmp_path / "sweep" / "seed-1" / "sft" / "checkpoints").iterdir())
    assert "2 not finished" in (tmp_path / "sweep" / "sweep.md").read_text("utf-8")
    assert not (tmp_path / "sweep" / "seed-2").exists()
    monkeypatch.setattr(child, "zkit", here)
    assert sweep(*arguments[1:], "--max-time", "5m") == 0
    assert "going on after step " in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_killed_and_started_again_at_once_it_waits_for_the_run_that_ends_and_goes_on(preset, tmp_path, monkeypatch, capsys):
    arguments = ("sweep", str(preset), "--grid", "seed=1", "--set", "stages.sft.train.steps=150", "--output", str(tmp_path / "sweep"))
    with (
        (tmp_path / "said.txt").open("w") as said,
        subprocess.Popen([sys.executable, "-m", "zephyr_kit", *arguments], stdout=said, stderr=said) as process,
    ):
        metrics = tmp_path / "sweep" / "seed-1" / "sft" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    monkeypatch.setattr(child, "zkit", here)
    assert sweep(*arguments[1:], "--max-time", "5m") == 0
    assert "going on after step " in capsys.readouterr().out


def test_through_a_launcher_those_with_a_first_stage_in_common_wait_for_each_other(preset, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    grid = ("--grid", "stages.dpo.objective.beta=0.1,0.2", "--grid", "seed=1,2")
    cluster = ("--launcher", "slurm", "--option", "partition=long", "--device", "cpu", "--devices", "1")
    assert sweep(preset, *grid, *cluster, "--output", tmp_path) == 0
    scripts = {script.parent.name: script.read_text("utf-8") for script in tmp_path.glob("*/slurm.sh")}
    assert len(scripts) == 4
    for name, script in scripts.items():
        assert f"#SBATCH --job-name=zkit-tiny-{name.partition('_')[2]}\n" in script
        assert "#SBATCH --dependency=singleton" in script
        assert "#SBATCH --partition=long" in script
        assert f"--reuse {tmp_path}" in script
        assert f"--set seed={name[-1]}" in script


def test_a_mean_is_over_steps_that_all_have_in_common_however_long_their_lines_are(tmp_path):
    outcomes = []
    for one in combinations([Axis("seed", ("1", "2"))]):
        folder = write_run(tmp_path / one.name, num_steps=1000)
        outcomes.append(Outcome(one, folder, "finished"))
    metrics = tmp_path / "seed-2" / "dpo" / "metrics.jsonl"
    lines = [json.loads(text) for text in metrics.read_text("utf-8").splitlines()]
    metrics.write_text("".join(json.dumps({**line, **({"loss": line["loss"] / 3} if "loss" in line else {})}) + "\n" for line in lines))
    view = View("two", outcomes, ["dpo"])
    drawn = curve_plots(view.settings, "dpo", view.facts)
    low, high, mean = (trace for trace in drawn.plots[0].traces if not trace["meta"]["held_out"])
    steps = drawn.axes[mean["meta"]["axis"]]["step"]
    assert len(steps) == 300
    assert steps[-1] == 1000
    for place, step in enumerate(steps):
        assert mean["y"][place] == pytest.approx(2 / 3 / step, rel=1e-4)
        assert (high["y"][place] - low["y"][place]) / 2 == pytest.approx(statistics.stdev([1 / step, 1 / 3 / step]), rel=1e-3)


# The grid


def test_what_no_preset_may_have_is_told_before_anything_starts(preset, tmp_path, capsys):
    mistakes = {"stages.stf=true,false": "there is no stage `stf`; did you mean `sft`?", "stages.dpo.objective.beta=0.1,-1": "-1"}
    for grid, told in mistakes.items():
        assert sweep(preset, "--grid", grid, "--output", tmp_path / "sweep") == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_comma_in_brackets_or_quotes_parts_nothing():
    text = 'stages.dpo.objective={use="dpo",beta=0.1},"ipo, it is",[1,[2,3]]'
    assert Axis.parse(text) == Axis("stages.dpo.objective", ('{use="dpo",beta=0.1}', '"ipo, it is"', "[1,[2,3]]"))


@pytest.mark.parametrize("text", ["seed", "seed=", "seed=1,,2", "=1", "seed=1,1"])
def test_what_is_no_axis_is_refused(text):
    with pytest.raises(PresetError, match="--grid "):
        Axis.parse(text)


def test_names_are_short_distinct_and_fit_for_folders():
    keys = ["stages.sft.train.epochs", "stages.dpo.train.epochs", "seed"]
    assert short_names(keys) == {keys[0]: "sft.train.epochs", keys[1]: "dpo.train.epochs", "seed": "seed"}
    found = combinations([Axis("a.path", ("x/y", "x y", "x-y"))])
    assert len({one.name for one in found}) == 3
    assert all("/" not in one.name and " " not in one.name for one in found)
    assert found[2].name == "path-x-y"
    with pytest.raises(PresetError, match="twice"):
        combinations([Axis("seed", ("1",)), Axis("seed", ("2",))])


def test_one_value_has_no_spread():
    assert str(Spread.of([0.5])) == "0.5"
    assert str(Spread.of([0.5, 0.5])) == "0.5 ± 0"
    assert str(Spread.of([1.0, 3.0])) == "2.0 ± 1.4"
    assert str(Spread(1.0, float("nan"), 2)) == str(Spread(1.0, float("inf"), 2)) == "1"
    assert (str(Spread.of([995.0, 995.0])), str(Spread.of([0.25, 0.35]))) == ("995 ± 0", "0.300 ± 0.071")


def test_the_figures_of_an_evaluation_are_those_of_each_model(tmp_path):
    rows = {"sft": {"score": 1.5, "wins": None}, "dpo": {"score": 2, "wins": float("nan")}}
    run = write_run(tmp_path / "run", rows=rows)
    assert figures_of(run)["evaluate"] == {"sft: score": 1.5, "dpo: score": 2.0}
    assert figures_of(tmp_path / "none") == {}


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"evaluations": 3}'])
def test_damage_is_no_figure_and_stops_no_sweep(tmp_path, damage):
    run = write_run(tmp_path / "run")
    (run / "sft" / "done.json").write_text(damage)
    (run / "run.json").write_text(damage)
    one = Outcome(combinations([Axis("seed", ("1",))])[0], run, "not finished")
    view = View("made", [one], ["sft", "dpo"])
    assert "sft" not in figures_of(run)
    assert view.stages == ["dpo"]
    assert taken(one) == {}
    assert view.made("dpo") == "Made once, for 1 run."
    preset = SimpleNamespace(stages=[SimpleNamespace(name=name) for name in ("sft", "dpo")])
    assert _state(run, preset) == ("finished" if "3" in damage else "not finished")

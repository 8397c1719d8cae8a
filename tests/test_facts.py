"""What is read of a run's folder: whole or quickly, finished or not, damaged or sound."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_runs import DONE, EVALUATION, KEY, SESSION, put, write_run, write_steps

from zephyr_kit import ZkitError
from zephyr_kit.exits import Exit
from zephyr_kit.facts import Curves, Session, StageFacts, differing, read_curves, read_run, told_apart
from zephyr_kit.journal import Journal
from zephyr_kit.report.phrases import lineage
from zephyr_kit.runs import RunError, RunFolder
from zephyr_kit.stopping import Stopped

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "made")


# Curves


def test_every_step_is_read_and_summed(tmp_path: Path) -> None:
    write_steps(tmp_path / "m", 40)
    curves = read_curves(tmp_path / "m")
    assert curves.steps["step"] == list(range(1, 41))
    assert curves.steps["loss"] == [1 / step for step in range(1, 41)]
    assert curves.held_out == {"step": [10, 20, 30, 40], "loss": [0.2, 0.1, 2 / 30, 0.05]}
    assert (curves.num_steps, curves.tokens, curves.targets) == (40, 40 * 100 + 820, 2000)
    assert curves.steps["tokens"][-1] == curves.tokens
    assert curves.seconds == pytest.approx(curves.tokens / 100)
    assert curves.exact
    assert (curves.last("loss"), curves.last("held_out/loss"), curves.last("nothing")) == (1 / 40, 0.05, None)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("most", [2, 7, 30])
def test_fewer_steps_are_some_of_all_with_the_last(tmp_path: Path, most: int, whole: bool) -> None:
    write_steps(tmp_path / "m", 1234)
    all_of_them = read_curves(tmp_path / "m", most=10**6)
    curves = read_curves(tmp_path / "m", most=most, whole=whole, looks_every=10)
    assert len(curves.steps["step"]) <= most
    assert curves.steps["step"][-1] == curves.num_steps == 1234
    for step, loss in zip(curves.steps["step"], curves.steps["loss"], strict=True):
        assert loss == all_of_them.steps["loss"][step - 1]
    for step, loss in zip(curves.held_out["step"], curves.held_out["loss"], strict=True):
        assert step % 10 == 0
        assert loss == 2 / step
    if most == 30:
        assert curves.tokens == pytest.approx(all_of_them.tokens, rel=0.1)
    assert curves.exact == whole


@pytest.mark.parametrize("every", [7, 100, 250])
def test_looks_at_held_out_data_are_found_among_many_steps(tmp_path: Path, every: int) -> None:
    write_steps(tmp_path / "m", 1000, looks_every=every)
    curves = read_curves(tmp_path / "m", most=40, whole=False, looks_every=every)
    assert len(curves.held_out["step"]) >= min(5, 1000 // every)
    assert not set(curves.held_out["step"]) - set(range(every, 1001, every))


def test_there_may_be_no_file_no_line_or_half_a_line(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "none").steps == {}
    for text in ("", '{"step": 1, "lo'):
        (tmp_path / "m").write_text(text)
        for whole in (True, False):
            assert read_curves(tmp_path / "m", whole=whole).steps == {}


def test_what_is_not_finite_and_what_is_damaged_is_told(tmp_path: Path) -> None:
    skipped = {"step": 2, "loss": "NaN", "gradient_norm": "Infinity", "num_tokens": 9, "skipped": 1, "rows": ["a:1"]}
    first, last = ({"step": step, "loss": loss} for step, loss in ((1, 0.5), (3, 0.25)))
    lines = [json.dumps(first), "{damaged", json.dumps(skipped), "[]", '{"step": "x"}', json.dumps(last)]
    (tmp_path / "m").write_text("\n".join(lines) + "\n")
    curves = read_curves(tmp_path / "m")
    assert curves.steps["loss"] == [0.5, None, 0.25]
    assert curves.damaged == (2, 4, 5)
    assert [(skip.step, skip.loss, skip.rows) for skip in curves.skips] == [(2, "NaN", ("a:1",))]


def test_the_share_that_ranks_waited_is_by_the_time_of_the_steps_that_tell_it(tmp_path: Path) -> None:
    step = {"loss": 1.0, "num_tokens": 100, "tokens_per_second": 50.0}  # two seconds
    lines = [{}, {"wait_seconds": [0.5, 0.0]}, {"wait_seconds": [0.5, 1.0]}, {"wait_seconds": "?"}]
    (tmp_path / "m").write_text("".join(json.dumps({"step": number, **step, **line}) + "\n" for number, line in enumerate(lines, 1)))
    curves = read_curves(tmp_path / "m")
    assert curves.wait_shares == (0.25, 0.25)
    assert "wait_seconds" not in curves.steps
    facts = StageFacts("sft", "trains", "done", curves=curves)
    assert dict(lineage(facts))["waiting"] == "25.0% of the ranks' time in steps, for each other: 25.0%, 25.0%"
    assert "waiting" not in dict(lineage(replace(facts, curves=Curves())))


# Runs


def test_a_finished_run_is_read_whole(run: Path) -> None:
    facts = read_run(run)
    assert (facts.name, facts.label, facts.is_done) == ("made", "made", True)
    sft, feedback, dpo, evaluate = facts.stages
    assert [stage.kind for stage in facts.stages] == ["trains", "gathers", "trains", "measures"]
    assert [stage.before for stage in facts.stages] == ["", "sft", "sft", "dpo"]
    assert (dpo.rows_of, dpo.settings["objective.beta"], dpo.settings["model.lora.rank"]) == (["feedback"], 0.1, 8)
    tokens = sum(range(101, 121))
    assert (dpo.cost.tokens, dpo.cost.targets, dpo.cost.examples) == (tokens, 1000, 90)
    assert dpo.cost.flops == 1e6 * tokens + 2e5 * 9000
    assert (dpo.cost.seconds, dpo.cost.device_seconds, dpo.cost.memory) == (60, 120, 2**30)
    assert (feedback.cost.dollars, feedback.cost.tokens) == (1.25, None)
    assert evaluate.evaluations[0].intervals["dpo"]["wins"] == (0.625, 0.875)
    assert [lengths.name for lengths in sft.lengths["data"]] == ["prompt", "whole"]
    assert not [trouble for trouble in facts.troubles if trouble.weight == "wrong"]
    assert "of 100 rows of data, 4 bad, 6 dropped: 6 x too long; 4 x no reply" in [trouble.text for trouble in facts.troubles]


def test_reading_quickly_finds_the_same_but_for_estimates(run: Path) -> None:
    quick, whole = read_run(run, most=5, whole=False), read_run(run)
    for one, other in zip(quick.stages, whole.stages, strict=True):
        assert (one.state, one.ledgers, one.evaluations) == (other.state, other.ledgers, other.evaluations)
        assert one.curves.num_steps == other.curves.num_steps


@pytest.mark.parametrize(
    ("note", "state", "told"),
    [
        ({**DONE, "outcome": "no memory", "exit": int(Exit.CANNOT)}, "failed", "It failed after 20 steps: no memory"),
        ({**DONE, "outcome": "stopped by SIGTERM", "exit": 143}, "unfinished", "left after 20 steps: stopped by SIGTERM"),
        ({"began": DONE["began"]}, "unfinished", "its process ended without a word"),
    ],
)
def test_a_run_that_ended_early_says_so(run: Path, note: dict, state: str, told: str) -> None:
    for stage in ("dpo", "evaluate"):
        (run / stage / "done.json").unlink()
    shutil.rmtree(run / "evaluate")
    put(run / "run.json", [{"stage": "sft", **SESSION, **DONE}, {"stage": "dpo", **SESSION, **note}])
    facts = read_run(run)
    assert [stage.state for stage in facts.stages][2:] == [state, "to come"]
    assert told in facts.troubles[0].text
    assert facts.troubles[0].weight == "wrong"


def test_a_run_is_seen_to_run(run: Path) -> None:
    (run / "dpo" / "done.json").unlink()
    put(run / "run.json", [{"stage": "dpo", **SESSION, "began": DONE["began"]}])
    with RunFolder(run).locked():
        if not any("FLOCK" in line for line in Path("/proc/locks").read_text().splitlines()):
            pytest.skip("this system does not tell who has locked what")
        assert read_run(run).stages[2].state == "running"
    assert read_run(run).stages[2].state == "unfinished"


def test_only_sessions_of_the_standing_result_are_counted(run: Path) -> None:
    other = {"stage": "dpo", **SESSION, **DONE, "key": "of another beta"}
    put(run / "run.json", [other, {"stage": "dpo", **SESSION, **DONE}, {"stage": "dpo", **SESSION, **DONE, "seconds": 5.0}])
    facts = read_run(run).stages[2]
    assert (len(facts.sessions), facts.cost.seconds) == (2, 65)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"'])
@pytest.mark.parametrize("name", [*(f"dpo/{name}.json" for name in ("data", "data.lengths", "key")), "run.json", "settings.json"])
def test_a_damaged_file_is_told_and_not_raised(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    facts = read_run(run)
    assert len(facts.stages) == 4
    if name != "dpo/key.json":
        assert any(Path(name).name in trouble.text for trouble in facts.troubles), facts.troubles


def test_what_was_measured_afterwards_is_read_too(run: Path) -> None:
    one = {**EVALUATION, "rows": {"dpo": {"wins": float("nan"), "loss": 2.0}}}
    put(run / "evaluations" / "wishes-1" / "evaluation.json", {"key": {}, "evaluations": [one, {**one, "title": "Others"}]})
    facts = read_run(run)
    assert [each.title for each in facts.evaluations] == ["Wishes", "Wishes (wishes-1)", "Others"]
    assert facts.measured[1].rows == {"dpo": {"wins": None, "loss": 2.0}}
    for number, text in enumerate(["{", '{"evaluations": [{}, 3]}', '{"evaluations": 5}', "{}"]):
        (run / "evaluations" / "wishes-1" / "evaluation.json").write_text(text)
        facts = read_run(run)
        assert [each.title for each in facts.evaluations] == ["Wishes"]
        assert sum("evaluations/wishes-1/evaluation.json" in trouble.text for trouble in facts.troubles) == (1, 2, 1, 1)[number]


def test_a_damaged_evaluation_of_a_stage_is_told(run: Path) -> None:
    put(run / "evaluate" / "done.json", {"evaluations": [{"title": "Wishes"}], "files": {}})
    facts = read_run(run)
    assert facts.stages[-1].state == "done"
    assert any("done.json: an evaluation cannot be read" in trouble.text for trouble in facts.troubles)


def test_a_missing_result_is_told(run: Path) -> None:
    put(run / "dpo" / "done.json", {"steps": 20, "files": {"model/model.safetensors": "digest"}})
    assert "model/model.safetensors is missing" in [trouble.text for trouble in read_run(run).troubles]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("metrics.jsonl", "metrics.jsonl ends at step 4, but the stage ended at step 20: curves, tokens and times lack the rest"),
        ("data.json", "data.json is missing"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_what_a_finished_stage_has_lost_is_told(run: Path, name: str, told: str, whole: bool) -> None:
    file = run / "sft" / name
    lines = file.read_bytes().splitlines(keepends=True)
    file.unlink()
    if name == "metrics.jsonl":
        file.write_bytes(b"".join(lines[:4]) + lines[4][:-9])
    assert ("sft", told, "wrong") in [(one.stage, one.text, one.weight) for one in read_run(run, whole=whole).troubles]


def test_a_folder_without_a_preset_is_none_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no preset\.toml .* give the folder that `zkit run` wrote"):
        read_run(tmp_path)
    (tmp_path / "preset.toml").write_text("name =")
    with pytest.raises(RunError, match=r"preset\.toml: damaged"):
        read_run(tmp_path)


def test_runs_are_compared_and_told_apart(tmp_path: Path) -> None:
    runs = told_apart([read_run(write_run(tmp_path / name, beta=beta)) for name, beta in (("a/x", 0.1), ("b/x", 0.5), ("y", 0.1))])
    assert [(one.path, one.values) for one in differing(runs)] == [("stages.dpo.objective.beta", (0.1, 0.5, 0.1))]
    assert [run.label for run in runs] == [str(tmp_path / "a/x"), str(tmp_path / "b/x"), "y"]


# The journal


@pytest.mark.parametrize(
    ("error", "code", "failed"),
    [(ZkitError("no room"), Exit.CANNOT, True), (ValueError("x"), Exit.CRASHED, True), (KeyboardInterrupt(), Exit.INTERRUPTED, False),
     (Stopped(Exit.TIME), Exit.TIME, False), (Stopped(Exit.TERMINATED), Exit.TERMINATED, False)],
)  # fmt: skip
def test_the_end_of_a_session_is_noted(tmp_path: Path, error: BaseException, code: Exit, failed: bool) -> None:
    journal = Journal(tmp_path / "run.json")
    journal.begin({"stage": "sft"})
    with pytest.raises(type(error)), journal.closing_last(CPU):
        raise error
    (note,) = journal.notes()
    assert (note["exit"], note["memory"] > 0, note["seconds"] >= 0) == (code, True, True)
    assert note["outcome"] == (str(error) or "KeyboardInterrupt")
    assert Session.of(note).failed == failed


def test_a_secret_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-very-secret-123")
    journal = Journal(tmp_path / "run.json")
    journal.begin({"stage": "sft"})
    with pytest.raises(ZkitError), journal.closing_last(CPU):
        raise ZkitError("refused with sk-very-secret-123")
    assert "sk-very" not in (tmp_path / "run.json").read_text()


def test_what_is_of_one_session_is_no_change(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run.json")
    note = {"stage": "sft", "command": ["run"], "device": "cpu", "key": KEY}
    journal.begin(note)
    with journal.closing_last(CPU):
        pass
    assert journal.changed_since({**note, "command": ["run", "x"], "flops_per_token": 3.0}) == []
    assert journal.changed_since({**note, "device": "cuda"}) == ['device: was "cpu", is "cuda"']

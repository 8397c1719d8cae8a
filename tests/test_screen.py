"""What a terminal shows of a training; what a file gets instead; and what the shell completes."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_cli import RUN, call

from zephyr_kit.cli.screen import MOST_KEPT, Curve, Screen
from zephyr_kit.cli.sparkline import BLOCKS, GAP, sparkline
from zephyr_kit.cli.tell import Teller
from zephyr_kit.observe import Report, Run
from zephyr_kit.protocols import Evaluation
from zephyr_kit.words import duration

ABOUT = Run("zephyr", "dpo", Path("runs/zephyr/dpo"), 100)


def report(step: int, loss: float = 0.7, **metrics: float) -> Report:
    return Report(step, 100, step / 50, loss, metrics, 1.5, 1e-3, 1000, 500, 2500.0)


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(1, 80))
def test_a_sparkline_is_as_wide_as_it_may_be_and_reaches_from_lowest_to_highest(values, width):
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    if len(values) <= width and len(set(values)) > 1:
        assert line[values.index(min(values))] == BLOCKS[0]
        assert line[values.index(max(values))] == BLOCKS[-1]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40, unique=True))
def test_a_sparkline_rises_with_its_values(values):
    heights = [BLOCKS.index(block) for block in sparkline(sorted(values), 80)]
    assert heights == sorted(heights)


def test_what_is_not_finite_is_a_gap():
    assert sparkline([0.0, math.nan, math.inf, 1.0], 10) == f"{BLOCKS[0]}{GAP}{GAP}{BLOCKS[-1]}"
    assert sparkline([math.nan], 10) == GAP
    assert sparkline([], 10) == ""
    assert sparkline([2.0, 2.0], 10) == BLOCKS[4] * 2


def test_a_long_curve_is_thinned_out_and_keeps_its_ends():
    curve = Curve()
    for value in range(10 * MOST_KEPT):
        curve.add(float(value))
    assert len(curve.values) < MOST_KEPT
    assert curve.values[0] == 0
    assert curve.values == sorted(curve.values)
    assert curve.values[-1] > 10 * MOST_KEPT * 0.99
    assert curve.last == 10 * MOST_KEPT - 1


DURATIONS = [(0.4, "0.4 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"), (90061, "25 h 01 min")]


@pytest.mark.parametrize(("seconds", "text"), DURATIONS)
def test_durations(seconds, text):
    assert duration(seconds) == text


def shown(screen: Screen, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(screen)
    return console.file.getvalue()


def test_one_screen_tells_stage_speed_time_memory_and_curves():
    clock = iter([0.0, *[10.0] * 9]).__next__
    screen = Screen(ABOUT, clock=clock, memory=lambda: "1 GiB now")
    screen.add(report(20, 0.5, **{"reward/margin": 0.25, "reward/accuracy": 0.75}))
    screen.look({"loss": 0.625})
    text = shown(screen)
    assert screen.left == pytest.approx(32.0)
    for part in ("dpo  of zephyr  step 20/100  epoch 0.40", "2,500 tokens/s", "10 s gone", "32 s left", "1 GiB now"):
        assert part in text
    rows = [line.split() for line in text.splitlines()]
    for label, value in (("loss", "0.5"), ("held-out loss", "0.625"), ("margin", "0.25"), ("accuracy", "0.75"), ("gradient norm", "1.5")):
        assert [*label.split(), BLOCKS[4], value] in rows
    assert max(map(len, shown(screen, 40).splitlines())) <= 40


def test_what_is_left_is_told_by_the_speed_of_steps_and_not_by_what_came_before_them():
    clock = iter([0.0, 10.0, 10.0]).__next__
    screen = Screen(Run("z", "sft", Path(), 100, first_step=90), clock=clock, memory=str)
    screen.add(report(95))
    assert screen.left == pytest.approx(2.0)


def told(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)
    teller = Teller(console)
    teller.zkit_run_started(ABOUT)
    for step in (1, 50, 100):
        teller.zkit_step_ended(ABOUT, report(step))
    teller.zkit_held_out(ABOUT, 100, {"loss": 0.6})
    teller.zkit_run_ended(ABOUT, None)
    teller.say("after it")
    return console.file.getvalue()


def test_a_terminal_is_drawn_anew_and_left_in_order():
    text = told(terminal=True)
    assert "step 100/100" in text
    assert text.index("held out: loss 0.6") < text.rindex("gradient norm")
    assert text.endswith("after it\n")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is back"


def test_a_file_gets_plain_lines():
    lines = told(terminal=False).splitlines()
    assert lines[-3:] == [
        "dpo step 100/100  loss 0.7  2,500 tokens/s",
        "dpo step 100/100  held out: loss 0.6",
        "after it",
    ]
    assert not [line for line in lines if "\x1b" in line or "━" in line]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_is_printed(capsys, shell):
    code, out, _ = call(capsys, "completion", shell)
    assert code == 0
    assert f"_ZKIT_COMPLETE={shell}_complete" in out


def completed(words: str, tmp_path: Path) -> list[str]:
    environment = {**os.environ, "_ZKIT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    done = subprocess.run([sys.executable, "-c", RUN], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_commands_presets_and_options_are_completed(tmp_path):
    assert completed("zkit exp", tmp_path) == ["plain,export"]
    assert "plain,zephyr-qlora" in completed("zkit run zephyr", tmp_path)
    assert completed("zkit export --dt", tmp_path) == ["plain,--dtype"]


@pytest.mark.parametrize("sequence", ["\x1b]52;c;Y3VybA==\x07", "\x1b[2J", "\x9b2J"])
def test_tables_and_samples_cannot_steer_the_terminal(sequence):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    teller = Teller(console)
    told = f"[/x] [bold]{sequence}"
    teller.show(Evaluation(told, {told: told}, {told: {told: 1.0}}, samples=({"prompt": told, told: told},)))
    with teller.track(told):
        pass
    out = console.file.getvalue()
    assert sequence not in out
    assert out.count("[/x] [bold]") >= 7, "and no markup is read in it"


def test_a_table_that_is_too_wide_is_shown_in_several_and_nothing_is_cut():
    columns = ["accuracy", "win rate", "wins", "ties", "losses", "length of a reply", "bits per byte"]
    rows = {model: {name: place + 0.125 for place, name in enumerate(columns)} for model in ("a-model-with-quite-some-name", "dpo")}
    intervals = {model: {name: (0.4, 200.0 + place) for place, name in enumerate(columns)} for model in rows}
    evaluation = Evaluation("Win rates", dict.fromkeys(columns, "x"), rows, intervals=intervals)

    def shown_in(width: int) -> str:
        file = io.StringIO()
        Teller(Console(file=file, width=width, soft_wrap=True)).show(evaluation)
        return file.getvalue()

    said = shown_in(80)
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said
    for place, name in enumerate(columns):
        assert name in said
        assert said.count(f"(0.400 – {200 + place}.000)") == said.count(f" {place}.125 ") == 2
    assert "…" not in shown_in(40)
    assert shown_in(400).count("Win rates") == 1

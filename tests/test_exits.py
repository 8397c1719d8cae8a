"""How the command ends: one table, in code, in the help and in the documents; and lengths of time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from zephyr_kit import cli
from zephyr_kit.cli.duration import seconds
from zephyr_kit.exits import Exit
from zephyr_kit.stopping import SIGNALS, Stop, Stopped

DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"


def test_the_documents_have_the_table():
    text = DOCUMENT.read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.split("|")[1].strip().isdecimal()]
    assert rows == [f"| {code:d} | {code.meaning} |" for code in Exit]


def test_the_help_has_the_table(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    said = capsys.readouterr().out
    assert all(f"{code:>3d}  {code.meaning}" in said for code in Exit)


def test_signals_end_as_shells_have_it():
    assert {number: code - 128 for number, code in SIGNALS.items() if code is not Exit.TIME} == {
        signal.SIGHUP: 1,
        signal.SIGINT: 2,
        signal.SIGTERM: 15,
        signal.SIGUSR1: 10,
    }


BEFORE = """
import signal
from zephyr_kit.stopping import Stop

class Last:
    def __del__(self):  # from which nothing can be raised, as from C++
        signal.raise_signal(signal.{name})

signal.signal(signal.{name}, signal.SIG_DFL)  # under nohup, and behind &, some are ignored
with Stop().starting():
    last = Last()
    del last
    print("went on")
"""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_before_the_work_begins_a_request_ends_the_process_at_once(number):
    ended = subprocess.run([sys.executable, "-c", BEFORE.format(name=number.name)], capture_output=True, text=True, check=False)
    assert ended.returncode == SIGNALS[number]
    assert "before it had begun" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(("text", "expected"), [("2h30m", 9000), ("45m", 2700), ("90s", 90), ("1d", 86400), ("1d2h3m4s", 93784)])
def test_lengths_of_time(text, expected):
    assert seconds(None, None, text) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "2", "2 h", "h", "0s", "-1h", "30m2h"])
def test_what_is_no_length_of_time(text):
    with pytest.raises(click.BadParameter, match="write it as 2h30m, 45m or 90s"):
        seconds(None, None, text)  # type: ignore[arg-type]


def test_a_request_waits_between_steps_and_not_within_a_look():
    stop = Stop()
    with stop.listening(), pytest.raises(Stopped), stop.later("this step is saved"):  # noqa: PT012  as the loop has it
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested() is Exit.TERMINATED
        with pytest.raises(Stopped), stop.at_once():
            pytest.fail("it should not be entered")
        signal.raise_signal(signal.SIGTERM)  # a scheduler that repeats itself changes nothing
    other = Stop()
    with other.listening(), pytest.raises(Stopped, match="SIGUSR1"), other.later("this step is saved"), other.at_once():
        signal.raise_signal(signal.SIGUSR1)


def test_a_request_in_a_destructor_is_remembered_and_no_noise(capsys):
    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGUSR1)

    stop = Stop()
    with stop.listening():
        last = Last()
        del last
        assert stop.requested() is Exit.WARNED
        with pytest.raises(Stopped, match="SIGUSR1"):
            stop.check()
    assert "Traceback" not in capsys.readouterr().err

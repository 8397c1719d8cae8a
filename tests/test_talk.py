"""A talk in the terminal: commands, turns, two models."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from zephyr_kit import ZkitError
from zephyr_kit.cli.harmless import harmless
from zephyr_kit.cli.talk import Talk
from zephyr_kit.protocols import Reply, Sampling
from zephyr_kit.serving import Speaker

CONTROLS = {chr(code) for code in (*range(32), *range(127, 160))} - {"\n", "\t"}


class Echo:
    """Says what it was told last, and remembers all that it was told."""

    def __init__(self, name: str) -> None:
        self.name, self.asked = name, []

    def generate(self, requests, *, on_text=None) -> Iterator[tuple[int, Reply]]:
        (request,) = requests
        self.asked.append(request)
        last = request.dialogue[-1].content
        if last == "fail":
            raise ZkitError("cannot")
        on_text(f"{self.name} ")
        if last == "stop":
            raise KeyboardInterrupt
        on_text(f"heard {last}")
        yield 0, Reply(f"{self.name} heard {last}", num_read=1, num_written=1)

    @property
    def turns(self) -> list[str]:
        return [f"{message.role}: {message.content}" for message in self.asked[-1].dialogue]


@pytest.fixture
def echo() -> Echo:
    return Echo("A")


def talk_with(*echoes: Echo, system: str | None = None, console: Console | None = None) -> Talk:
    return Talk({echo.name: Speaker(echo, None) for echo in echoes}, Sampling(seed=5), system, console)


def test_turns_add_up_and_each_reply_has_a_seed_of_its_own(echo, capsys):
    talk = talk_with(echo, system="Be.")
    talk.hear("one")
    talk.hear("//two")
    assert echo.turns == ["system: Be.", "user: one", "assistant: A heard one", "user: /two"]
    assert [request.sampling.seed for request in echo.asked] == [5, 6]
    assert capsys.readouterr().out == "A heard one\nA heard /two\n"


def test_settings_are_changed_by_commands(echo, capsys):
    talk = talk_with(echo)
    for line in ("/temperature 1.5", "/top-p 0.5", "/top-k 40", "/max-tokens 7", "/seed 11", "/system Rhyme always.", "/settings"):
        talk.hear(line)
    assert capsys.readouterr().out.endswith("temperature 1.5  top-p 0.5  top-k 40  max-tokens 7  seed 11\nsystem: Rhyme always.\n")
    talk.hear("x")
    assert echo.asked[-1].sampling == Sampling(7, 1.5, 0.5, 11, 40)
    assert echo.turns[0] == "system: Rhyme always."
    talk.hear("/system")
    talk.hear("y")
    assert echo.turns[0] == "user: x"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/temprature 1", "there is no /temprature; did you mean `temperature`? (/help)"),
        ("/temperature hot", "/temperature: 'hot' is not a valid float range."),
        ("/top-p 2", "/top-p: 2.0 is not in the range 0<=x<=1."),
        ("/max-tokens", "/max-tokens: '' is not a valid integer range."),
        ("/again", "nothing was said yet"),
        ("/undo", "back to the beginning"),
    ],
)
def test_mistakes_change_nothing(echo, capsys, line, told):
    talk = talk_with(echo)
    talk.hear(line)
    assert capsys.readouterr().out == f"{told}\n"
    assert talk.sampling == Sampling(seed=5)
    assert echo.asked == []


def test_every_command_is_in_the_help(echo, capsys):
    talk = talk_with(echo)
    talk.hear("/help")
    out = capsys.readouterr().out
    assert all(f"/{name}" in out for name in talk._commands if name != "help")


def test_again_undo_and_new(echo, capsys):
    talk = talk_with(echo)
    for line in ("one", "two", "/again"):
        talk.hear(line)
    assert echo.turns == ["user: one", "assistant: A heard one", "user: two"]
    talk.hear("/undo")
    talk.hear("three")
    assert echo.turns == ["user: one", "assistant: A heard one", "user: three"]
    talk.hear("/new")
    talk.hear("four")
    assert echo.turns == ["user: four"]
    assert "back to: A heard one\n" in capsys.readouterr().out


def test_what_was_said_before_ctrl_c_stays_and_a_failure_can_be_taken_back(echo, capsys):
    talk = talk_with(echo)
    talk.hear("stop")
    talk.hear("go")
    assert echo.turns == ["user: stop", "assistant: A", "user: go"]
    talk.hear("fail")
    assert "[cannot; /undo takes the last message back" in capsys.readouterr().out
    talk.hear("/undo")
    talk.hear("on")
    assert echo.turns[-2:] == ["assistant: A heard go", "user: on"]


@pytest.mark.parametrize("sequence", ["\x1b]52;c;Y3VybA==\x07", "\x1b[2J\x1b[H", "\x9b2J", "\x1bP+q\x1b\\", "\r\x08\x7f"])
def test_a_model_cannot_steer_the_terminal(echo, capsys, sequence):
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    echo.name = f"A{sequence}"
    talk_with(echo).hear("one\ntwo\tthree")
    talk_with(echo, Echo("B"), console=console).hear("one")
    out = capsys.readouterr().out
    assert out.endswith("heard one\ntwo\tthree\n")
    assert not set(out) & set(sequence) & CONTROLS
    assert sequence not in console.file.getvalue()
    assert f"\\x{ord(sequence[0]):02x}" in out
    assert f"\\x{ord(sequence[0]):02x}" in console.file.getvalue()
    assert echo.turns[-1] == "user: one", "the model is told what was said, letter for letter"


@given(st.text(st.characters(max_codepoint=255)), st.integers(1, 5))
def test_text_is_harmless_however_it_is_cut(text, size):
    whole = harmless(text)
    assert not set(whole) & CONTROLS
    assert whole == "".join(harmless(text[at : at + size]) for at in range(0, len(text), size))


def test_text_cannot_be_shown_in_another_order_than_it_has():
    assert harmless("a\u202eb\u2066c") == "a\\u202eb\\u2066c"
    assert harmless("é–中🙂\u200d") == "é–中🙂\u200d"


def test_two_models_each_go_on_with_their_own_words(echo, capsys):
    other = Echo("B")
    talk = talk_with(echo, other)
    talk.hear("one")
    talk.hear("two")
    assert other.turns == ["user: one", "assistant: B heard one", "user: two"]
    assert echo.asked[-1].sampling == other.asked[-1].sampling
    assert capsys.readouterr().out == "A:\nA heard one\nB:\nB heard one\nA:\nA heard two\nB:\nB heard two\n"


def test_side_by_side_in_a_wide_terminal(echo):
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    talk_with(echo, Echo("B"), console=console).hear("one")
    assert [line for line in console.file.getvalue().splitlines() if "A heard one" in line and "B heard one" in line]
    narrow = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    talk_with(echo, Echo("B"), console=narrow).hear("one")
    assert narrow.file.getvalue() == ""

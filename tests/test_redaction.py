"""Secrets of the environment: which they are, and that nothing that is printed holds one."""

from __future__ import annotations

import io
import sys

import click
import pytest
from rich.console import Console

from zephyr_kit import ZkitError
from zephyr_kit.cli import main
from zephyr_kit.cli.streams import without_secrets
from zephyr_kit.redaction import HIDDEN, RedactingStream, names_of_secrets_in, redacted, secrets, without_key

SECRET = "s3cr3t-Value+/="


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", SECRET)


NAMES = ("HF_TOKEN", "OPENAI_API_KEY", "APIKEY", "DB_PASSWORD", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "my_secret", "X_CREDENTIALS")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_secrets(name: str) -> None:
    assert SECRET in secrets({name: SECRET})


@pytest.mark.parametrize(
    ("name", "value"),
    [("PATH", "/usr/bin:/bin"), ("KEYBOARD", "de-latin1"), ("AUTHOR", "some body"), ("A_TOKEN", "short"), ("KEY_NAME", "OPENAI_API_KEY")],
)
def test_what_is_no_secret(name: str, value: str) -> None:
    assert secrets({name: value}) == ()


def test_texts_lose_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert redacted(f"a {SECRET} b s3cr3t-Value%2B%2F%3D c") == f"a {HIDDEN} b {HIDDEN} c"
    assert redacted("nothing to hide") == "nothing to hide"
    assert names_of_secrets_in(f"x{SECRET}y") == ["SOME_TOKEN"]
    assert without_key("the key is abcdefgh12", "abcdefgh12") == f"the key is {HIDDEN}"
    assert without_key("no key", "") == "no key"
    monkeypatch.setenv("PRIVATE_KEY", "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----")
    assert redacted("line: hkiG9w0BAQEFAASC") == f"line: {HIDDEN}"


def test_streams_are_streams() -> None:
    inner = io.StringIO()
    stream = RedactingStream(inner)
    print("a", SECRET, file=stream)
    click.echo(f"b {SECRET}", file=stream)
    Console(file=stream, force_terminal=False).print(f"c {SECRET}")
    stream.writelines([f"d {SECRET}"])
    stream.flush()
    assert inner.getvalue().replace(HIDDEN, "*") == "a *\nb *\nc *\nd *"
    assert not stream.isatty()


def test_a_traceback_holds_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, without_secrets():
        raise RuntimeError(f"the server says {SECRET}")
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert f"RuntimeError: the server says {HIDDEN}" in err
    assert SECRET not in err


def test_an_error_holds_no_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZkitError(f"refused: {SECRET}")

    monkeypatch.setattr("zephyr_kit.cli.build", fail)
    before = sys.stdout
    with pytest.raises(SystemExit):
        main(["presets"])
    assert capsys.readouterr().err == f"error: refused: {HIDDEN}\n"
    assert sys.stdout is before

"""What an endpoint refuses, and what is refused before one is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loopback
import pytest
from asking import CPU, completer, echo, free_port, requests, write
from loopback import MODEL, Faults, Handler, Loopback
from small_model import Said
from zkit_feedback.completer import EndpointCompleter
from zkit_feedback.endpoint import Price

from zephyr_kit import ZkitError
from zephyr_kit.answers import Answers
from zephyr_kit.config import Builder, Offered, PresetError
from zephyr_kit.protocols import Bench, Completer, Failure, Reply

KEY = "sk-secret-5309-never-to-be-seen"
VARIABLE = "LOOPBACK_KEY"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    answers = Answers(tmp_path / "answers")
    yield Bench(CPU, answers)
    answers.close()


# What can never succeed


def test_a_wrong_key_stops_the_run_and_is_not_repeated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with Loopback(echo, key="another") as server:
        who = completer(server, api_key_env=VARIABLE)
        with pytest.raises(ZkitError, match=rf"{server.base_url} answers 401 to the key in the environment variable {VARIABLE}") as error:
            write(who, requests(3), bench)
        (problem,) = who.problems(CPU)
        assert VARIABLE in problem
        monkeypatch.delenv(VARIABLE)
        (missing,) = who.problems(CPU)
        assert f"for want of a key: set the environment variable {VARIABLE}" in missing
    assert KEY not in problem + str(error.value)
    assert not server.asked


def test_a_missing_key_is_a_problem_before_anything_is_asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    who = completer(api_key_env=VARIABLE)
    (problem,) = who.problems(CPU)
    assert f"export {VARIABLE}=" in problem
    with pytest.raises(ZkitError, match=VARIABLE):
        write(who, requests(1), bench)


def test_a_key_that_cannot_be_sent_is_not_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{KEY}\nand more")
    with Loopback(echo) as server:
        who = completer(server, api_key_env=VARIABLE)
        with pytest.raises(ZkitError, match=f"{VARIABLE} holds characters that are in no key") as error:
            write(who, requests(1), bench)
        assert who.problems(CPU) == [str(error.value)]
        assert KEY not in str(error.value)
        monkeypatch.setenv(VARIABLE, f"{KEY}\n")
        server.key = KEY
        assert isinstance(write(who, requests(1), bench)[0], Reply)


def test_the_key_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    caplog.set_level("DEBUG")
    answers = Answers(tmp_path)
    with Loopback(echo, key=KEY, faults=Faults({"broken": 0.5}, most=2)) as server:
        who = completer(server, api_key_env=VARIABLE)
        assert all(isinstance(reply, Reply) for reply in write(who, requests(8), Bench(CPU, answers)))
    answers.close()
    assert b"I heard" in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for kept in (*(file.read_bytes().decode("latin-1") for file in tmp_path.iterdir()), caplog.text, repr(who)):
        assert KEY not in kept


def test_a_model_that_is_not_there(bench: Bench) -> None:
    with Loopback(echo) as server:
        who = completer(server, model="lopback")
        assert who.problems(CPU) == [f"{server.base_url} has no model = 'lopback'; did you mean `{MODEL}`?"]
        with pytest.raises(ZkitError, match="does not have model = 'lopback', or base_url is not its address: there is no model lopback"):
            write(who, requests(3), bench)
        assert completer(server).problems(CPU) == []


def test_an_address_that_does_not_answer() -> None:
    (problem,) = completer(base_url=f"http://127.0.0.1:{free_port()}/v1").problems(CPU)
    assert "the connection failed" in problem


def test_one_request_that_is_refused_is_a_failure(bench: Bench) -> None:
    with Loopback(echo) as server:
        wanted = [*requests(3, "This {} is too long"), *requests(3)]
        replies = write(completer(server), wanted, bench)
    assert replies[:3] == [Failure("the endpoint answers 400 (the request is too long)")] * 3
    assert all(isinstance(reply, Reply) for reply in replies[3:])


def test_settings_that_refuse_every_request_stop_the_run(bench: Bench) -> None:
    def strict(_: dict[str, Any]) -> Said:
        raise ValueError("temperature is fixed")

    refused = r"refuses every request .* with these settings: the endpoint answers 400 \(temperature is fixed\)"
    with Loopback(strict) as server, pytest.raises(ZkitError, match=refused):
        write(completer(server, concurrency=2), requests(40), bench)
    assert sum(server.asked.values()) < 12


def forbidding(said: str, *, only: str = "") -> type[Handler]:
    """A gateway that answers 403 to what holds `only`."""

    class Gateway(Handler):
        def _answer(self, body: dict[str, Any], request: str) -> None:
            if only in request:
                self._refuse(403, "policy_violation", said)
            else:
                super()._answer(body, request)

    return Gateway


def test_one_request_that_is_forbidden_is_a_failure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "Handler", forbidding("flagged " * 100, only="kill"))
    with Loopback(echo) as server:
        replies = write(completer(server), [*requests(2, "How to kill {0} lice?"), *requests(3)], bench)
        assert max(server.asked.values()) == 1
    for reply in replies[:2]:
        assert isinstance(reply, Failure)
        assert reply.reason.startswith("the endpoint answers 403 (flagged flagged")
        assert len(reply.reason) < 350
        assert reply.cost == 0
    assert all(isinstance(reply, Reply) for reply in replies[2:])


def test_a_key_that_may_do_nothing_stops_the_run_and_no_piece_of_it_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(loopback, "Handler", forbidding(f"{KEY[:14]}*** may not, nor may ***{KEY[-12:]}"))
    refused = rf"refuses every request .* the endpoint answers 403 .*; .* 403 to the key in the environment variable {VARIABLE}"
    with Loopback(echo, key=KEY) as server, pytest.raises(ZkitError, match=refused) as error:
        write(completer(server, api_key_env=VARIABLE), requests(1), bench)
    assert "(… may not, nor may …)" in str(error.value)
    assert sum(server.asked.values()) == 2


# The table


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"base_url": "localhost:8000/v1"}, "should be an address such as"),
        ({"base_url": f"https://me:{KEY}@host/v1"}, "holds a password"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "holds a password or a query"),
        ({"api_key_env": KEY}, "never the key itself"),
        ({"extra": {"messages": []}}, "extra.messages"),
        ({"extra": {"temperature": 1}}, "extra.temperature"),
        ({"extra": {"seed": 1}}, "extra.seed.*`omit`"),
        ({"extra": {"max_completion_tokens": 1}}, "extra.max_completion_tokens.*`limit`"),
    ],
)
def test_tables_that_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        completer(**keys)
    assert KEY not in str(error.value)


def test_the_table_of_a_preset() -> None:
    builder = Builder({Completer: Offered("completer", {"openai": EndpointCompleter})}, "preset.toml")
    table = {"use": "openai", "model": "gpt-4o-mini", "price": {"input": 0.15, "output": 0.6}, "requests_per_minute": 500}
    built = builder.convert(Completer, table, "stages.feedback.completers[0]")
    assert built == EndpointCompleter(model="gpt-4o-mini", price=Price(0.15, 0.6), requests_per_minute=500)
    with pytest.raises(PresetError, match="did you mean `concurrency`"):
        builder.convert(Completer, {**table, "concurency": 2}, "completer")


def test_a_fingerprint_tells_who_answers_and_not_how_it_is_asked(bench: Bench) -> None:
    same = completer(base_url="http://host/v1/", concurrency=1, timeout=1, price=Price(1, 1), api_key_env="OTHER", retries=0)
    assert same.fingerprint(bench) == completer(base_url="http://host/v1").fingerprint(bench)
    for keys in ({"model": "x"}, {"base_url": "http://other/v1"}, {"extra": {"top_k": 1}}, {"omit": ("seed",)}):
        assert completer(**{"base_url": "http://host/v1", **keys}).fingerprint(bench) != same.fingerprint(bench)

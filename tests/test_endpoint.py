"""OpenAI-compatible endpoints, over a real HTTP server on this machine."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import loopback
import pytest
from asking import CPU, completer, echo, free_port, requests, write
from loopback import MODEL, Faults, Loopback
from small_model import Said, SmallModel, small_weights
from zkit_feedback import client, pace
from zkit_feedback.endpoint import Price
from zkit_feedback.pace import Pace
from zkit_feedback.scripted import ScriptedCompleter

from zephyr_kit import ZkitError
from zephyr_kit.answers import Answers
from zephyr_kit.example import Message
from zephyr_kit.protocols import Bench, Failure, Reply, Request, Sampling
from zephyr_kit.testing import CompleterLaws


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return SmallModel(small_weights(request, tmp_path_factory))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    answers = Answers(tmp_path / "answers")
    yield Bench(CPU, answers)
    answers.close()


# Replies


def test_a_real_model_writes_as_it_is_asked_to(model: SmallModel, bench: Bench) -> None:
    story = (Message("user", "Once upon a time, there was"),)
    wanted = [Request(story, Sampling(12, 1.0, 0.9, seed)) for seed in (1, 2, 1)] + [Request(story, Sampling(5))]
    with Loopback(model) as server:
        first, other, again, short = write(completer(server), wanted, bench)
        assert sum(server.asked.values()) == 3
        asked = [json.loads(body) for body in server.asked]
    assert first == again != other
    assert isinstance(short, Reply)
    assert not short.finished
    assert {"max_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": 2}.items() <= next(a for a in asked if a["seed"] == 2).items()


def test_equal_requests_are_asked_once_and_charged_once(bench: Bench) -> None:
    with Loopback(echo) as server:
        who = completer(server, price=Price(input=1e6, output=2e6))
        replies = write(who, requests(1) * 3, bench)
        assert sum(server.asked.values()) == 1
    assert [reply.cost for reply in replies if isinstance(reply, Reply)] == [5 + 2 * 3, 0, 0]
    assert {reply.text for reply in replies if isinstance(reply, Reply)} == {"I heard: What is 0 and 0?"}


def test_what_another_run_paid_for_meanwhile_is_not_asked_again(bench: Bench, tmp_path: Path) -> None:
    """Two runs share the cache; no answer was there yet when this one looked for all of them."""
    kept = {"text": "from the other run", "ending": "stop", "num_read": 5, "num_written": 3}
    with closing(Answers(tmp_path / "answers")) as other, Loopback(echo) as server:
        who = completer(server, concurrency=1, price=Price(input=1e6, output=2e6))

        def mind(body: dict[str, Any]) -> Said:
            for wanted in requests(3):
                other.put([server.base_url, who.body(wanted.dialogue, wanted.sampling)], kept)
            return echo(body)

        server.mind = mind
        replies = write(who, requests(3), bench)
        assert sum(server.asked.values()) == 1
    assert replies[1:] == [Reply("from the other run", cost=11.0)] * 2


def test_what_the_endpoint_withholds_is_a_failure_that_is_paid_for_and_not_kept(bench: Bench) -> None:
    said = iter([Said("I must", "content_filter", num_read=3, num_written=1)])
    with Loopback(lambda body: next(said, None) or echo(body)) as server:
        who = completer(server, price=Price(1e6, 1e6))
        assert write(who, requests(1), bench) == [Failure("the endpoint's content filter withheld the answer", 4.0)]
        assert isinstance(write(who, requests(1), bench)[0], Reply)
        assert list(server.answered.values()) == [2]


def test_without_a_price_nobody_knows_the_cost_and_a_later_one_needs_no_request(bench: Bench) -> None:
    with Loopback(echo) as server:
        unpriced = write(completer(server), requests(1) * 2, bench)
        assert [reply.cost for reply in unpriced] == [None, None]
        priced = write(completer(server, price=Price(1e6, 2e6)), requests(1) * 2, bench)
        assert [reply.cost for reply in priced] == [11, 0]
        assert sum(server.asked.values()) == 1


def test_tokens_that_the_endpoint_does_not_count_have_no_known_cost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = loopback.Handler._completion
    monkeypatch.setattr(loopback.Handler, "_completion", lambda self, said: {**whole(self, said), "usage": None})
    with Loopback(echo) as server:
        (reply,) = write(completer(server, price=Price(1, 1)), requests(1), bench)
    assert reply == Reply("I heard: What is 0 and 0?", cost=None)


def test_half_a_character_can_be_sent_and_kept(bench: Bench) -> None:
    with Loopback(lambda _: Said("half \ud83d")) as server:
        (reply,) = write(completer(server), [Request((Message("user", "half \ude00"),))], bench)
    assert reply == Reply("half ?", cost=None)


def test_further_keys_travel_with_each_request(bench: Bench) -> None:
    with Loopback(echo) as server:
        write(completer(server, extra={"reasoning_effort": "low"}, limit="max_completion_tokens"), requests(1), bench)
        (body,) = map(json.loads, server.asked)
    assert (body["reasoning_effort"], body["max_completion_tokens"]) == ("low", 8)
    assert "max_tokens" not in body


def test_what_is_kept_is_what_was_sent(bench: Bench) -> None:
    """Body, wire and key are one thing."""
    who = completer(model=MODEL, extra={"top_k": 5, "logprobs": False}, omit=("temperature", "top_p"))
    (wanted,) = requests(1)
    body = who.body(wanted.dialogue, wanted.sampling)
    assert {"temperature", "top_p"}.isdisjoint(body)
    with Loopback(echo) as server:
        placed = replace(who, base_url=server.base_url)
        write(placed, [wanted], bench)
        assert [json.loads(sent) for sent in server.asked] == [body]
        assert bench.answers.get([server.base_url, body])["text"].startswith("I heard")
    assert placed.fingerprint(bench)["omit"] == ["temperature", "top_p"]


def test_without_a_seed_each_sample_is_still_drawn_by_itself(bench: Bench) -> None:
    drawn = itertools.count()
    with Loopback(lambda _: Said(f"draw {next(drawn)}")) as server:
        who = completer(server, omit=("seed",))
        wanted = [Request((Message("user", "Draw"),), Sampling(8, 1.0, seed=seed)) for seed in (0, 1, 2, 1)]
        first, second, third, again = write(who, wanted, bench)
        assert len({first, second, third}) == 3
        assert again == second
        assert write(who, wanted, bench) == [first, second, third, again]
        assert list(server.asked.values()) == [3]
        assert not any("seed" in json.loads(sent) for sent in server.asked)


# Faults


def test_all_that_goes_wrong_is_survived_and_nothing_is_answered_twice(bench: Bench) -> None:
    rates = dict.fromkeys(("limited", "broken", "slow", "silent", "garbled", "truncated", "closed"), 0.1)
    with Loopback(echo, faults=Faults(rates, seed=3, retry_after=0.01, slowness=0.05, silence=6.5, most=5)) as server:
        replies = write(completer(server, timeout=6.0), requests(40), bench)
        assert set(server.struck) == set(rates)
        assert [reply.text for reply in replies if isinstance(reply, Reply)] == [f"I heard: What is {n} and {n}?" for n in range(40)]
        assert list(server.answered.values()) == [1] * 40
        before = sum(server.asked.values())
        assert write(completer(server), requests(40), bench) == replies
        assert sum(server.asked.values()) == before


def test_a_request_that_never_succeeds_is_a_failure_and_not_kept(bench: Bench) -> None:
    with Loopback(echo, faults=Faults({"broken": 1.0})) as server:
        (failure,) = write(completer(server, retries=2), requests(1), bench)
        assert failure == Failure("the endpoint answers 500 (something broke; after 3 attempts)")
        server.faults = Faults()
        assert isinstance(write(completer(server), requests(1), bench)[0], Reply)


def test_a_run_that_is_stopped_goes_on_where_it_was(bench: Bench) -> None:
    with Loopback(echo, faults=Faults({"slow": 1.0}, slowness=0.01)) as server:
        iterator = completer(server, concurrency=4).complete(requests(40), bench)
        for _ in range(10):
            next(iterator)
        iterator.close()
        done = set(server.answered)
        assert 10 <= len(done) < 40
        server.stop()
        server.start()
        replies = write(completer(server, concurrency=4), requests(40), bench)
        assert all(isinstance(reply, Reply) for reply in replies)
        assert list(server.answered.values()) == [1] * 40


def test_a_server_that_comes_back_is_waited_for(bench: Bench) -> None:
    with Loopback(echo) as server:
        server.stop()
        timer = threading.Timer(0.3, server.start)
        timer.start()
        replies = write(completer(server, backoff=0.1), requests(4), bench)
        timer.join()
    assert all(isinstance(reply, Reply) for reply in replies)


def test_a_server_that_is_gone_stops_the_run_instead_of_failing_every_request(bench: Bench) -> None:
    with pytest.raises(ZkitError, match=r"127.0.0.1:\d+/v1 has not been there for .* base_url .* run again: what was answered is kept"):
        write(completer(base_url=f"http://127.0.0.1:{free_port()}/v1", retries=1), requests(40), bench)


@pytest.mark.slow
def test_a_server_process_that_is_killed_and_started_again(
    bench: Bench, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    port, weights = free_port(), small_weights(request, tmp_path_factory)

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(__file__).with_name("loopback.py")), "--port", str(port), "--weights", str(weights)]
        return subprocess.Popen([*command, "--faults", '{"slow": 0.9}'], stdout=subprocess.PIPE, text=True)

    with start() as process:
        assert process.stdout is not None
        process.stdout.readline()
        who = completer(base_url=f"http://127.0.0.1:{port}/v1", concurrency=2, retries=12, backoff=0.1)
        found = {}
        replies = who.complete(requests(24), bench)
        for number, reply in replies:
            found[number] = reply
            if len(found) == 6:
                process.send_signal(signal.SIGKILL)
                process.wait()
                second = start()
    with second:
        second.kill()
    assert all(isinstance(reply, Reply) for reply in found.values())
    assert len(found) == 24


# How requests follow each other


def test_turns_are_evenly_spaced_and_all_hold_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = 100.0, []
    monkeypatch.setattr(pace, "monotonic", lambda: now)

    class Recorded(Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return False

    turns, stop = Pace(per_minute=120), Recorded()
    for _ in range(3):
        turns.wait(stop)
    turns.hold(10.0)
    turns.wait(stop)
    assert waits == [0.0, 0.5, 1.0, 10.0]


def test_the_endpoint_says_how_long_to_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[float] = []
    monkeypatch.setattr(client.Pace, "hold", lambda _, seconds: held.append(seconds))
    with Loopback(echo, faults=Faults({"limited": 1.0}, retry_after=0.01, most=2)) as server:
        write(completer(server), requests(1), bench)
    assert held == [0.01, 0.01]


# Laws


class TestEndpoint(CompleterLaws):
    @pytest.fixture(autouse=True)
    def _serve(self, model: SmallModel) -> Iterator[None]:
        with Loopback(model) as server:
            self.completer = completer(server)
            yield


class TestScripted(CompleterLaws):
    completer = ScriptedCompleter("gpt-4o-mini")


def test_its_miniature_is_offline_says_what_it_is_and_varies_with_the_seed(bench: Bench, tmp_path: Path) -> None:
    small = completer(model="gpt-4o-mini").miniature(tmp_path)
    assert small.fingerprint(bench) == {"use": "scripted", "instead_of": "gpt-4o-mini"}
    assert small.problems(CPU) == []
    replies = [reply for _, reply in small.complete(requests(4, "Tell me of kites and lanterns and compasses"), bench)]
    assert len(set(replies)) == 4
    assert [reply for _, reply in small.complete(requests(4, "Tell me of kites and lanterns and compasses"), bench)] == replies

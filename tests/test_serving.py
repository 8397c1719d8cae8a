"""The endpoint as OpenAI's client sees it, and as somebody else's page does."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import openai
import pytest
from policies import CPU, backend
from tiny import write_model

from zephyr_kit import ZkitError
from zephyr_kit.example import Message
from zephyr_kit.protocols import Reply, Request, Sampling, Start
from zephyr_kit.serving import ChatServer, Speaker

USUAL = Sampling(12, 0.0)
ASKED = [{"role": "user", "content": "Say it."}]


class Scripted:
    """A policy that says what it was asked, in reverse order of words, and remembers how it was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def generate(self, requests, *, on_text=None) -> Iterator[tuple[int, Reply]]:
        (request,) = requests
        self.asked.append(request)
        if request.dialogue[-1].content == "too long":
            raise ZkitError("the dialogue is longer than the model's positions (9 tokens of 8)")
        if request.dialogue[-1].content == "crash":
            raise RuntimeError("on purpose")
        words = request.dialogue[-1].content.split()[::-1][: request.sampling.max_new_tokens]
        for word in words:
            on_text(word + " ")
        yield 0, Reply(" ".join(words), len(words) < request.sampling.max_new_tokens, num_read=7, num_written=len(words) + 1)


class Letters:
    """A tokenizer by letters."""

    def encode(self, example):
        from types import SimpleNamespace

        return SimpleNamespace(prompt=list(example.prompt[-1].content), completions=(list(example.completions[0][0].content),))


@contextmanager
def serving(speakers, **how) -> Iterator[ChatServer]:
    server = ChatServer(speakers, USUAL, **how)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


@contextmanager
def client_of(server: ChatServer, key: str = "any") -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def policy() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def server(policy) -> Iterator[ChatServer]:
    with serving({"one": Speaker(policy, Letters()), "two": Speaker(Scripted(), Letters())}) as found:
        yield found


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    with client_of(server) as found:
        yield found


def chat(client: openai.OpenAI, text: str, **how):
    return client.chat.completions.create(model="one", messages=[{"role": "user", "content": text}], **how)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Speaker:
    weights = write_model(tmp_path_factory.mktemp("model"))
    one = backend(weights)
    return Speaker(one.load(CPU, start=Start(), train=False), one.tokenizer(Start()))


def test_a_real_model_says_what_it_says_without_a_server(real):
    request = Request((Message("system", "Be."), Message("user", "Say it.")), Sampling(9, 0.8, seed=3, top_k=5))
    ((_, reply),) = real.policy.generate([request])
    messages = [{"role": "developer", "content": "Be."}, {"role": "user", "content": [{"type": "text", "text": "Say it."}]}]
    with serving({"tiny": real}) as server, client_of(server) as client:
        how = {"model": "tiny", "messages": messages, "temperature": 0.8, "top_p": 1, "seed": 3, "extra_body": {"top_k": 5}}
        whole = client.chat.completions.create(**how, max_tokens=9)
        with client.chat.completions.create(**how, max_completion_tokens=9, stream=True, stream_options={"include_usage": True}) as stream:
            pieces = list(stream)
    assert whole.choices[0].message.content == reply.text
    assert whole.choices[0].finish_reason == ("stop" if reply.finished else "length")
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (reply.num_read, reply.num_written)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices).strip() == reply.text
    assert pieces[-1].usage == whole.usage
    assert [piece.choices[0].finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 2) + [whole.choices[0].finish_reason]
    assert len({piece.id for piece in pieces}) == 1


def test_models_are_listed(client, server):
    assert [model.id for model in client.models.list()] == ["one", "two"]
    assert client.models.retrieve("two").owned_by == "zephyr-kit"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("three")


def test_what_is_not_said_is_as_on_the_command_line(client, policy):
    chat(client, "a")
    first = policy.asked[-1].sampling
    chat(client, "a", temperature=0.5, top_p=0.25, seed=-7, max_tokens=3)
    assert (first.max_new_tokens, first.temperature, first.top_p, first.top_k) == (12, 0.0, 1.0, 0)
    assert policy.asked[-1].sampling == Sampling(3, 0.5, 0.25, -7)


def test_the_limit_and_stops(client):
    assert chat(client, "c b a", max_tokens=2).choices[0].finish_reason == "length"
    stopped = chat(client, "end STOP now then", stop=["xyz", "STOP"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("then now", "stop")
    assert stopped.usage.completion_tokens == len("then now")
    # A stop that comes in two pieces, and one that only began.
    assert chat(client, "d c b a", stop="b c").choices[0].message.content == "a"
    assert chat(client, "d c b a", stop="b c x").choices[0].message.content == "a b c d"
    with chat(client, "d c b a", stop="b c", stream=True) as stream:
        assert "".join(piece.choices[0].delta.content or "" for piece in stream) == "a "


@pytest.mark.parametrize(
    ("how", "error", "message", "param"),
    [
        ({"model": "tow"}, openai.NotFoundError, "there is no model `tow`; did you mean `two`?", "model"),
        ({"messages": []}, openai.BadRequestError, "`messages` should be a list of messages, and not empty", "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, openai.BadRequestError, "`messages[0].role` should be one of", "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, openai.BadRequestError, "`messages[0].content` should be a text", "messages[0]"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "x"}]}, openai.BadRequestError, "should be of the user", "messages"),
        ({"n": 2}, openai.BadRequestError, "`n`: one reply is written", "n"),
        ({"temperature": 3}, openai.BadRequestError, "`temperature` = 3: should be a number between 0 and 2", "temperature"),
        ({"top_p": "x"}, openai.BadRequestError, "`top_p` = 'x': should be a number between 0 and 1", "top_p"),
        ({"max_tokens": 0}, openai.BadRequestError, "`max_tokens` = 0: should be a whole number of 1 or more", "max_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, openai.BadRequestError, "two names for one limit", "max_tokens"),
        ({"stop": ["a"] * 5}, openai.BadRequestError, "`stop` should be a text, or at most 4 of them", "stop"),
        ({"logprobs": True}, openai.BadRequestError, "`logprobs` is not offered here; leave it out", "logprobs"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "`temprature`; did you mean `temperature`?", "temprature"),
    ],
)
def test_mistakes_are_told_as_openai_tells_them(client, how, error, message, param):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "one", "messages": ASKED, **how})
    assert message in caught.value.body["message"]
    assert caught.value.body["type"] == "invalid_request_error"
    assert caught.value.param == param


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_model_refuses_is_told(client, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, "too long", stream=stream)
    assert caught.value.code == "context_length_exceeded"


def test_a_mistake_of_ours_is_told_and_the_next_request_is_answered(client, capfd):
    with pytest.raises(openai.InternalServerError, match="RuntimeError: on purpose"):
        chat(client, "crash")
    assert chat(client, "b a").choices[0].message.content == "a b"
    assert "RuntimeError: on purpose" in capfd.readouterr().err


def ask(server: ChatServer, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, dict, str]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)) as connection:
        connection.request(method, path, body, names)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read().decode("utf-8")


BODY = json.dumps({"messages": ASKED})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
    ids=str,
)
def test_pages_of_others_are_not_answered(server, policy, headers, status):
    before = len(policy.asked)
    headers = {"Content_Type": "application/json", **{name: value.format(port=server.port) for name, value in headers.items()}}
    found, answered, _ = ask(server, "POST", "/v1/chat/completions", BODY, **headers)
    assert found == status
    assert len(policy.asked) - before == (status == 200)
    assert not [name for name in answered if name.lower().startswith("access-control")]


def test_it_listens_on_loopback_alone(server):
    assert server._server.server_address[0] == "127.0.0.1"
    with pytest.raises(ZkitError, match=rf"port {server.port} of 127\.0\.0\.1 is not to be had: .*; choose another with --port"):
        ChatServer({}, USUAL, port=server.port)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/chat/completions", None, 405),
        ("POST", "/v1/models", "{}", 405),
        ("GET", "/etc/passwd", None, 404),
        ("POST", "/v1/chat/completions", "{", 400),
        ("POST", "/v1/chat/completions", "[" * 100_000, 400),
        ("POST", "/v1/chat/completions", '"x"', 400),
        ("POST", "/v1/chat/completions", " " * (4 * 2**20 + 1), 413),
    ],
    ids=lambda value: str(value)[:24],
)
def test_other_requests_are_refused_in_the_same_shape(server, method, path, body, status):
    try:
        found, _, text = ask(server, method, path, body, Content_Type="application/json")
    except (ConnectionResetError, BrokenPipeError):
        assert status == 413  # refused before all of it was sent
        return
    assert found == status
    assert json.loads(text)["error"].keys() == {"message", "type", "param", "code"}


def test_a_token_is_asked_for_where_one_is_set():
    with serving({"one": Speaker(Scripted(), Letters())}, token="s3cret") as server:
        with client_of(server, "guess") as client, pytest.raises(openai.AuthenticationError):
            chat(client, "a")
        with client_of(server, "s3cret") as client:
            assert chat(client, "b a").choices[0].message.content == "a b"
        assert ask(server, "GET", "/v1/models")[0] == 401
        assert ask(server, "GET", "/")[0] == 200, "the page has no secret, and a field for the token"


def test_the_page_stands_alone(server):
    status, headers, text = ask(server, "GET", "/")
    assert status == 200
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", headers["Content-Security-Policy"])[1]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert text.count(f'nonce="{nonce}"') == 2
    assert nonce not in ask(server, "GET", "/")[2]
    text = text.replace('<link rel="icon" href="data:,">', "")  # else a browser asks for one
    assert not re.findall(r"(?:src|href)\s*=|https?://|@import|url\(|innerHTML|\son\w+=", text)
    for control in re.findall(r'<(?:input|select|textarea)[^>]*id="(\w+)"', text):
        assert re.search(rf'<label[^>]*>[^<]+<(?:input|select|textarea)[^>]*id="{control}"', text), f"{control} has a label"

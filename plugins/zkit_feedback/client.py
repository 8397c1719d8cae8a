"""Requests to an endpoint: many at a time, each paid for once, sent again for as long as it helps."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from threading import Event, Lock
from time import monotonic
from typing import TYPE_CHECKING, Any

from zephyr_kit import ZkitError
from zephyr_kit.answers import digest
from zephyr_kit.protocols import Failure
from zkit_feedback.endpoint import sendable
from zkit_feedback.pace import Pace
from zkit_feedback.trouble import Trouble, Unreadable, Unusable, read_trouble

if TYPE_CHECKING:
    from zephyr_kit.answers import Answers
    from zkit_feedback.endpoint import Endpoint

PROBE = "Say yes."
"""Who refuses even this refuses the settings, not the request."""
LONGEST_BACKOFF = 30.0
"""Seconds."""
AHEAD = 2
"""Questions that are made, for each that is under way."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    text: str
    ending: str
    """`stop`, `length` or another word of the endpoint's."""
    num_read: int = 0
    """Tokens of the request, over all attempts that were answered."""
    num_written: int = 0


def accept(answer: Answer) -> None:
    """Take any answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and what its answer must be like."""

    body: Mapping[str, Any]
    check: Callable[[Answer], object] = accept
    """Raises `Unusable` for an answer that will not do."""

    def again(self, reason: str, attempt: int) -> Mapping[str, Any]:
        """The request in other words: who answers the same to the same would never do better."""
        if not reason:
            return self.body
        *before, last = self.body["messages"]
        nudge = f"{last['content']}\n\n(An earlier answer could not be used: {reason}. Keep to the form that is asked for.)"
        return {**self.body, "seed": self.body["seed"] + attempt, "messages": [*before, {**last, "content": nudge}]}


def ask_all(
    endpoint: Endpoint, count: int, question: Callable[[int], Question], answers: Answers
) -> Iterator[tuple[int, Answer | Failure]]:
    """The answer to each of `count` questions, under its number, as soon as it is there.

    A question is made when it is asked, for all of them may not fit into memory. Equal ones are
    asked once, and charged once. Closing the iterator lets requests that are under way end, so
    that their answers are kept, and starts no more. Raises ZkitError for what would go wrong with
    every one of them.
    """
    asked: dict[bytes, list[int]] = {}
    for number in range(count):
        asked.setdefault(digest(question(number).body), []).append(number)
    unknown = []
    for numbers in asked.values():
        known = look_up(endpoint, question(numbers[0]), answers)
        if known is None:
            unknown.append(numbers)
        else:
            yield from _shared(numbers, known)
    if unknown:
        yield from _ask_unknown(endpoint, question, unknown, answers)


def look_up(endpoint: Endpoint, question: Question, answers: Answers) -> Answer | None:
    """The answer that was kept, if there is one and it will do."""
    kept = answers.get([endpoint.place, question.body])
    if kept is None:
        return None
    answer = Answer(**kept)
    try:
        question.check(answer)
    except Unusable:
        return None
    return answer


def _ask_unknown(
    endpoint: Endpoint, question: Callable[[int], Question], groups: Sequence[list[int]], answers: Answers
) -> Iterator[tuple[int, Answer | Failure]]:
    key = endpoint.key()
    connection = connect(endpoint, key=key, timeout=endpoint.timeout)
    client = Client(endpoint, connection, answers, key, Pace(endpoint.requests_per_minute))
    pool = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="endpoint")
    left, waiting = iter(groups), dict[Future[Answer | Failure], list[int]]()
    try:
        while True:
            for numbers in islice(left, AHEAD * endpoint.concurrency - len(waiting)):
                waiting[pool.submit(client.ask, question(numbers[0]))] = numbers
            if not waiting:
                return
            for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield from _shared(waiting.pop(done), done.result())
    finally:
        client.stop.set()
        pool.shutdown(cancel_futures=True)
        connection.close()


def _shared(numbers: Sequence[int], answer: Answer | Failure) -> Iterator[tuple[int, Answer | Failure]]:
    """One answer for equal questions; only the first is charged."""
    free = answer if isinstance(answer, Failure) else replace(answer, num_read=0, num_written=0)
    for place, number in enumerate(numbers):
        yield number, free if place else answer


def connect(endpoint: Endpoint, *, key: str, timeout: float) -> Any:
    """The client of the `openai` package; it leaves all patience to us."""
    import openai

    # No proxy stands between this machine and itself.
    http = openai.DefaultHttpxClient(trust_env=not endpoint.is_loopback)
    return openai.OpenAI(api_key=key or "none", base_url=endpoint.place, timeout=timeout, max_retries=0, http_client=http)


@dataclass
class Client:
    """Asks one question after the other, in any number of threads."""

    endpoint: Endpoint
    connection: Any
    answers: Answers
    key: str = field(repr=False)
    pace: Pace
    stop: Event = field(default_factory=Event)
    """Set when nobody waits for answers any longer."""
    _last_heard: float = 0.0
    _has_answered: bool = False
    _probing: Lock = field(default_factory=Lock)

    def ask(self, question: Question) -> Answer | Failure:
        """The answer, kept as soon as it is there; or why there is none, after all attempts."""
        begun, unusable, num_read, num_written = monotonic(), "", 0, 0
        trouble = Trouble("was not sent", again=False)
        for attempt in range(self.endpoint.retries + 1):
            self.pace.wait(self.stop)
            if self.stop.is_set():
                return Failure("stopped before it was answered")
            try:
                answer = self._send(question.again(unusable, attempt))
                num_read, num_written = num_read + answer.num_read, num_written + answer.num_written
                question.check(answer)
            except Exception as error:
                trouble = read_trouble(error, self.endpoint, key=self.key)
                unusable = trouble.reason if isinstance(error, Unusable) else unusable
                self._last_heard = self._last_heard if trouble.absent else monotonic()
            else:
                return self._keep(question, replace(answer, num_read=num_read, num_written=num_written))
            if not trouble.again:
                self._probe(question)
                return Failure(trouble.reason)
            self._rest(trouble, attempt)
        return self._given_up(trouble, begun)

    def _send(self, body: Mapping[str, Any]) -> Answer:
        own = {key: value for key, value in body.items() if key not in self.endpoint.extra}
        raw = self.connection.chat.completions.with_raw_response.create(**own, extra_body=self.endpoint.extra)
        return read_answer(raw.text)

    def _keep(self, question: Question, answer: Answer) -> Answer:
        kept = {name: getattr(answer, name) for name in Answer.__slots__}
        self.answers.put([self.endpoint.place, question.body], kept)
        self._has_answered, self._last_heard = True, monotonic()
        return answer

    def _probe(self, question: Question) -> None:
        """See, once, that it is the request that is refused; raises ZkitError where the same settings never get an answer."""
        with self._probing:
            if self._has_answered or self.stop.is_set():
                return
            try:
                self._send({**question.body, "messages": [{"role": "user", "content": PROBE}]})
                self._has_answered = True
            except Exception as error:
                trouble = read_trouble(error, self.endpoint, key=self.key)
                if not trouble.again:
                    what = f"{self.endpoint.place} refuses every request to model = {self.endpoint.model!r}"
                    raise ZkitError(f"{what} with these settings: {trouble.reason}") from error

    def _rest(self, trouble: Trouble, attempt: int) -> None:
        """Wait as long as the endpoint asks, or twice as long each time; never all threads alike."""
        if trouble.wait is not None:
            self.pace.hold(trouble.wait)
        doubled = min(self.endpoint.backoff * 2**attempt, LONGEST_BACKOFF)
        if attempt < self.endpoint.retries:
            self.stop.wait((doubled if trouble.wait is None else trouble.wait) * random.uniform(1, 1.5))  # noqa: S311 - not for secrets

    def _given_up(self, trouble: Trouble, begun: float) -> Failure:
        if trouble.absent and self._last_heard < begun:
            raise ZkitError(
                f"{self.endpoint.place} has not been there for {monotonic() - begun:.0f} s; "
                "see that it runs and that base_url is its address, and run again: what was answered is kept"
            )
        attempts = self.endpoint.retries + 1
        return Failure(f"{trouble.reason} (after {attempts} attempt{'s' if attempts > 1 else ''})")


def read_answer(text: str) -> Answer:
    """What the endpoint sent as an answer; raises `Unreadable` if it is none."""
    try:
        sent = json.loads(text)
        choice, usage = sent["choices"][0], sent.get("usage") or {}
        written = choice["message"].get("content") or choice["message"].get("refusal") or ""
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(f"the endpoint's answer cannot be read ({type(error).__name__})") from error
    if not isinstance(written, str):
        raise Unreadable("the endpoint's answer is no text")
    return Answer(sendable(written), str(choice.get("finish_reason") or "stop"), *tokens)

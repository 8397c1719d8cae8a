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
from zephyr_kit.redaction import without_key
from zkit_feedback.endpoint import sendable, total
from zkit_feedback.pace import Pace
from zkit_feedback.trouble import Trouble, Unreadable, Unusable, Withheld, bracketed, read_trouble

if TYPE_CHECKING:
    from zephyr_kit.answers import Answers
    from zkit_feedback.endpoint import Endpoint

WITHHELD = "content_filter"
PROBE = "Say yes."
"""Who refuses even this refuses the settings, not the request."""
LONGEST_BACKOFF = 30.0
"""Seconds."""
LONGEST_SAID = 120
"""Characters that are quoted of an answer that cannot be used."""
AHEAD = 2
"""Questions that are made, for each that is under way."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    text: str
    ending: str
    """`stop`, `length` or another word of the endpoint's."""
    num_read: int | None = 0
    """Tokens of the request, over all attempts that were answered; None where the endpoint does not say."""
    num_written: int | None = 0


def accept(answer: Answer) -> None:
    """Take any answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and what its answer must be like."""

    body: Mapping[str, Any]
    check: Callable[[Answer], object] = accept
    """Raises `Unusable` for an answer that will not do."""
    draw: int = 0
    """Tells apart equal requests that are to be answered each by itself."""

    def identity(self, place: str) -> list[Any]:
        """What the answer is kept under: where it is asked, and all that is sent."""
        return [place, self.body, self.draw] if self.draw else [place, self.body]

    def verify(self, answer: Answer) -> None:
        """Raise `Withheld` or `Unusable` for an answer that is not to be kept."""
        if answer.ending == WITHHELD:
            raise Withheld
        self.check(answer)

    def again(self, reason: str, attempt: int) -> Mapping[str, Any]:
        """The request in other words: who answers the same to the same would never do better."""
        if not reason:
            return self.body
        *before, last = self.body["messages"]
        nudge = f"Attempt {attempt + 1}. An earlier answer could not be used: {reason}. Keep to the form that is asked for."
        seed = {"seed": self.body["seed"] + attempt} if "seed" in self.body else {}
        return {**self.body, **seed, "messages": [*before, {**last, "content": f"{last['content']}\n\n({nudge})"}]}


def ask_all(
    endpoint: Endpoint, count: int, question: Callable[[int], Question], answers: Answers
) -> Iterator[tuple[int, Answer | Failure]]:
    """The answer to each of `count` questions, under its number, as soon as it is there.

    A question is made anew each time that it is looked at, and not kept, for all of them may not fit
    into memory. Equal ones are asked once, and charged once. Closing the iterator lets requests that are under way end, so
    that their answers are kept, and starts no more. Raises ZkitError for what would go wrong with
    every one of them.
    """
    asked: dict[bytes, list[int]] = {}
    for number in range(count):
        asked.setdefault(digest(question(number).identity(endpoint.place)), []).append(number)
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
    kept = answers.get(question.identity(endpoint.place))
    if kept is None:
        return None
    answer = Answer(**kept)
    try:
        question.verify(answer)
    except (Unusable, Withheld):
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
        begun, unusable, heard = monotonic(), "", list[Answer]()
        trouble = Trouble("was not sent", again=False)
        for attempt in range(self.endpoint.retries + 1):
            self.pace.wait(self.stop)
            if self.stop.is_set():
                return Failure("stopped before it was answered", self._cost(heard))
            # Another run that keeps its answers in the same place may have paid for it by now.
            known = look_up(self.endpoint, question, self.answers)
            if known is not None:
                return charged(known, [*heard, known])
            try:
                heard.append(self._send(question.again(unusable, attempt)))
                self._has_answered = True
                question.verify(heard[-1])
            except Exception as error:
                trouble = read_trouble(error, self.endpoint, key=self.key)
                unusable = str(error) if isinstance(error, Unusable) else unusable
                self._last_heard = self._last_heard if trouble.absent else monotonic()
            else:
                return self._keep(question, heard)
            if not trouble.again:
                self._probe(question)
                return Failure(bracketed(trouble.reason, trouble.particulars), self._cost(heard))
            self._rest(trouble, attempt)
        return self._given_up(trouble, begun, heard, quoted=bool(unusable))

    def _send(self, body: Mapping[str, Any]) -> Answer:
        # All of it as it is: what the client knows as arguments, and what it does not.
        create = self.connection.chat.completions.with_raw_response.create
        answer = read_answer(create(model=body["model"], messages=body["messages"], extra_body=body).text)
        # It knows the key, and may repeat it; what is kept must not.
        return replace(answer, text=without_key(answer.text, self.key))

    def _keep(self, question: Question, heard: Sequence[Answer]) -> Answer:
        """The last answer, which stands for all that were paid for."""
        answer = charged(heard[-1], heard)
        self.answers.put(question.identity(self.endpoint.place), {name: getattr(answer, name) for name in Answer.__slots__})
        self._last_heard = monotonic()
        return answer

    def _cost(self, heard: Sequence[Answer]) -> float | None:
        return total(self.endpoint.cost(answer.num_read, answer.num_written) for answer in heard)

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
                    refused = bracketed(trouble.reason, trouble.particulars)
                    raise ZkitError(f"{what} with these settings: {refused}{trouble.advice and '; '}{trouble.advice}") from error

    def _rest(self, trouble: Trouble, attempt: int) -> None:
        """Wait as long as the endpoint asks, or twice as long each time; never all threads alike."""
        if trouble.wait is not None:
            self.pace.hold(trouble.wait)
        doubled = min(self.endpoint.backoff * 2**attempt, LONGEST_BACKOFF)
        if attempt < self.endpoint.retries:
            self.stop.wait((doubled if trouble.wait is None else trouble.wait) * random.uniform(1, 1.5))  # noqa: S311 - not for secrets

    def _given_up(self, trouble: Trouble, begun: float, heard: Sequence[Answer], *, quoted: bool) -> Failure:
        if trouble.absent and self._last_heard < begun:
            raise ZkitError(
                f"{self.endpoint.place} has not been there for {monotonic() - begun:.0f} s; "
                "see that it runs and that base_url is its address, and run again: what was answered is kept"
            )
        attempts = self.endpoint.retries + 1
        tried = f"after {attempts} attempt{'s' if attempts > 1 else ''}"
        said = f"it said {json.dumps(heard[-1].text[:LONGEST_SAID], ensure_ascii=False)}" if quoted else ""
        return Failure(bracketed(trouble.reason, trouble.particulars, tried, said), self._cost(heard))


def charged(answer: Answer, heard: Sequence[Answer]) -> Answer:
    """An answer with the tokens of all that were paid for to get it."""
    return replace(answer, num_read=total(one.num_read for one in heard), num_written=total(one.num_written for one in heard))


def read_answer(text: str) -> Answer:
    """What the endpoint sent as an answer; raises `Unreadable` if it is none."""
    try:
        sent = json.loads(text)
        choice, usage = sent["choices"][0], sent.get("usage") or {}
        written = choice["message"].get("content") or choice["message"].get("refusal") or ""
        tokens = [None if (count := usage.get(name)) is None else int(count) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(type(error).__name__) from error
    if not isinstance(written, str):
        raise Unreadable("it is no text")
    return Answer(sendable(written), str(choice.get("finish_reason") or "stop"), *tokens)

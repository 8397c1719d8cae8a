"""Whoever writes dialogues by a chat template: this process by templates of ours, a limited child by all others."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any, Protocol

from zephyr_kit import ZkitError, template_child
from zephyr_kit.template_child import MEMORY, SECONDS, Asked, Turn

PATIENCE = 120.0
"""Seconds for an answer, on a machine that has much else to do; the child's own limit is its CPU time."""
KEPT = ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")
"""Of the environment, what Python needs to find Jinja; keys and passwords stay here."""
ENDED: Mapping[int, str] = {
    signal.SIGPROF: f"takes more than {SECONDS:g} s of CPU",
    signal.SIGKILL: f"was ended by the system, for want of memory ({MEMORY >> 20} MB)",
}
"""What the signal says that has ended the child."""


class TemplateRefusal(Exception):
    """What a template itself says to a dialogue that it does not write."""


class TemplateOverrun(ZkitError):
    """A template that takes more than any honest one."""


class TemplateWriter(Protocol):
    """Writes dialogues by one template."""

    def write(self, turns: Sequence[Turn], asked: Sequence[Asked]) -> list[str]:
        """A text for each that is asked of these turns; raises `TemplateRefusal`, and `TemplateOverrun` when limits are passed."""
        ...


def writer_for(template: str, variables: Mapping[str, Any], *, ours: bool) -> TemplateWriter:
    """Where the template may run: `ours` takes time and memory as its text does, which is known."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(variables), default=str))
    return OwnWriter(template, plain) if ours else TemplateProcess(template, plain)


class OwnWriter:
    """Writes here."""

    def __init__(self, template: str, variables: Mapping[str, Any]) -> None:
        self._template, self._variables = template, variables

    def write(self, turns: Sequence[Turn], asked: Sequence[Asked]) -> list[str]:
        most = template_child.most_characters(self._template, turns)
        return [
            template_child.write(self._compiled, turns[:count], reply=reply, variables=self._variables, most=most) for count, reply in asked
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._template, self._variables)

    @cached_property
    def _compiled(self) -> Any:
        return template_child.compiled(self._template)


class TemplateProcess:
    """Lets a child write, which is started for the first dialogue and serves all that follow. One request at a time."""

    def __init__(self, template: str, variables: Mapping[str, Any]) -> None:
        self._template, self._variables = template, variables
        self._lock = Lock()

    def write(self, turns: Sequence[Turn], asked: Sequence[Asked]) -> list[str]:
        with self._lock:
            return self._ask([turns, asked])

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process has a child of its own.
        return type(self), (self._template, self._variables)

    @cached_property
    def _child(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        command = [sys.executable, "-P", template_child.__file__]
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(command, env=environment, bufsize=0, **streams)  # noqa: S603  our own program
        weakref.finalize(self, _end, child)
        return child

    def _ask(self, question: Any) -> list[str]:
        if "_child" not in self.__dict__:
            try:
                self._exchange({"template": self._template, "variables": self._variables})
            except TemplateRefusal:
                self._end()
                raise
        return self._exchange(question)

    def _exchange(self, question: Any) -> list[str]:
        try:
            _send(self._child, json.dumps(question).encode("ascii") + b"\n")
            answer = json.loads(_receive(self._child))
        except (OSError, ValueError) as error:
            raise TemplateOverrun(f"this chat template {self._end()}") from error
        if "over" in answer:
            self._end()
            raise TemplateOverrun(f"this chat template {answer['over']}")
        if "refused" in answer:
            raise TemplateRefusal(answer["refused"])
        texts: list[str] = answer["texts"]
        return texts

    def _end(self) -> str:
        """How the child has ended, or now does."""
        code = _end(self.__dict__.pop("_child"))
        return ENDED.get(-code, "does what no chat template may do: its process was ended")


def _end(child: subprocess.Popen[bytes]) -> int:
    """Let the child go, which ends when nobody can ask it any longer; its exit code."""
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()
    try:
        return child.wait(SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _send(child: subprocess.Popen[bytes], message: bytes) -> None:
    assert child.stdin is not None
    left = memoryview(message)
    while left:
        left = left[child.stdin.write(left) :]


def _receive(child: subprocess.Popen[bytes]) -> bytes:
    """One line; raises ValueError when none comes."""
    assert child.stdout is not None
    pieces: list[bytes] = []
    while not (pieces and pieces[-1].endswith(b"\n")):
        if not select.select([child.stdout], [], [], PATIENCE)[0]:
            raise ValueError("no answer")
        pieces.append(os.read(child.stdout.fileno(), 1 << 20))
        if not pieces[-1]:
            raise ValueError("no answer")
    return b"".join(pieces)

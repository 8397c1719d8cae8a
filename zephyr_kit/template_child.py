"""Chat templates in Jinja's sandbox; as a program, in a process of its own with limits.

A template comes with a model: somebody else has written it. The sandbox keeps it from Python,
but neither from looping nor from filling memory, so what is not our own runs here: 2 s of CPU
for each text, 256 MB, no file, no socket, no environment. Only the standard library and Jinja
are imported, so that the process is small and there at once.

A line of JSON comes in, and one goes out. First the template with its variables; then dialogues,
each with what is asked of it: how many of its turns, and whether a reply is to be opened.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

import jinja2
import jinja2.debug  # at an error it would be too late
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SECONDS = 2.0
"""Of CPU, for one text."""
MEMORY = 256 * 2**20
"""Bytes of address space."""
GROWTH = 16
"""How many characters may be written for each of the dialogue and of the template."""
REASON = 300
"""Characters of a template's own words that are passed on."""

FORBIDDEN = ("ctypes.", "import", "open", "os.", "pty.", "shutil.", "socket.", "subprocess.")
"""Beginnings of audit events that no rendering brings about."""

Turn = Mapping[str, str]
Asked = tuple[int, bool]
"""How many turns are written, and whether a reply is opened after them."""


class TooLongError(Exception):
    """More was written than any honest template writes."""


class _Generation(Extension):
    """`{% generation %}` marks what other tools train; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012  Jinja's name

    def parse(self, parser: Any) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> Any:
        return caller()


class _Dict:
    """`dict`, without the class's attributes."""

    def __call__(self, *pairs: Any, **values: Any) -> dict[Any, Any]:
        return dict(*pairs, **values)

    def fromkeys(self, *keys: Any) -> dict[Any, Any]:
        return dict.fromkeys(*keys)


class _Namespace(Namespace):
    """`namespace`, without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"{name!r} cannot be set")
        super().__setitem__(name, value)


def compiled(template: str) -> jinja2.Template:
    """The template, with all that transformers offers to one."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    names = {"raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
    environment.globals.update(names)
    return environment.from_string(template)


def write(template: jinja2.Template, turns: Sequence[Turn], *, reply: bool, variables: Mapping[str, Any], most: int) -> str:
    """A dialogue as the template writes it; raises `TooLongError` beyond `most` characters, and whatever the template raises."""
    told = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": reply}
    pieces, size = [], 0
    for piece in template.generate(**variables, **told):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise TooLongError
    return "".join(pieces)


def most_characters(template: str, turns: Sequence[Turn]) -> int:
    """How long the text of a dialogue may become."""
    return GROWTH * (len(template) + sum(len(turn["content"]) + len(turn["role"]) for turn in turns))


def _tojson(value: Any, ensure_ascii: bool = False, **form: Any) -> str:  # noqa: FBT001, FBT002  as transformers has it
    return json.dumps(value, ensure_ascii=ensure_ascii, **form)


def _refuse(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def main() -> None:
    """Answer until nobody asks any longer."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    first = json.loads(sys.stdin.buffer.readline())
    made: list[jinja2.Template] = []

    def make() -> list[str]:
        made.append(compiled(first["template"]))
        return []

    _answer(make)
    sys.addaudithook(_forbid)
    for line in sys.stdin.buffer:
        _answer(partial(_texts, made[0], first, *json.loads(line)))


def _texts(template: jinja2.Template, first: Mapping[str, Any], turns: Sequence[Turn], asked: Sequence[Asked]) -> list[str]:
    texts = []
    for count, reply in asked:
        _limit_time()
        most = most_characters(first["template"], turns[:count])
        texts.append(write(template, turns[:count], reply=reply, variables=first["variables"], most=most))
    return texts


def _answer(work: Callable[[], list[str]]) -> None:
    """Do it, and tell what came of it."""
    _limit_time()
    answer: dict[str, Any]
    try:
        answer = {"texts": work()}
    except TooLongError:
        answer = {"over": f"writes more than {GROWTH} times what it is given"}
    except (MemoryError, RecursionError) as error:
        answer = {"over": "takes more than 256 MB of memory" if isinstance(error, MemoryError) else "goes too deep"}
    except Exception as error:  # a template is somebody's program: it may raise anything
        answer = {"refused": f"{type(error).__name__ if not str(error) else error}"[:REASON]}
    signal.setitimer(signal.ITIMER_PROF, 0)
    sys.stdout.buffer.write(json.dumps(answer).encode("ascii") + b"\n")
    sys.stdout.buffer.flush()


def _limit_time() -> None:
    """When it has passed, the system ends the process, whatever that does just then."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)


def _forbid(event: str, arguments: object) -> None:  # noqa: ARG001  Python's signature
    if event.startswith(FORBIDDEN):
        os._exit(1)


if __name__ == "__main__":
    main()

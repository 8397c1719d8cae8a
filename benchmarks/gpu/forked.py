"""Work in a process of its own, forked from one that has imported everything slow."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SECONDS_TO_END = 20.0
LAST_WORDS = 1500
"""Characters of what a process said that has failed."""


class Failed(Exception):
    """The reason why nothing came of the work."""


class LacksMemory(Failed):
    """The device's memory does not suffice."""


def context_of(start: str) -> Any:
    """Of multiprocessing: `forkserver`, or `spawn`, by which each process imports for itself."""
    context = get_context(start)
    if start == "forkserver":
        # torch asks NVML whether there is a GPU, and leaves CUDA for the processes that are forked.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        context.set_forkserver_preload(["benchmarks.gpu.preloaded"])
    return context


def apart(context: Any, log: Path, seconds: float, work: Callable[..., Any], *given: Any) -> Any:
    """What comes of the work; raises `Failed` if nothing does, or not in time. What it prints goes to the log."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, log, work, given))
    try:
        process.start()
    except (OSError, EOFError) as error:
        raise Failed(f"no process could be started ({type(error).__name__}: {error})") from error
    sender.close()
    try:
        if not receiver.poll(max(1.0, seconds)):
            raise Failed(f"no end after {seconds:.0f} seconds")
        kind, result = receiver.recv()
        process.join(SECONDS_TO_END)
    except EOFError as error:
        process.join()
        raise Failed(f"the process died ({process.exitcode}): {_end_of(log)}") from error
    finally:
        process.kill()
        process.join()
    if kind is not None:
        raise kind(result)
    return result


def _answer(sender: Any, log: Path, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    try:
        answer = (None, work(*given))
    except BaseException as error:
        traceback.print_exc()
        answer = (LacksMemory if _lacks_memory(error) else Failed, _told(error))
    sys.stdout.flush()
    sender.send(answer)
    sender.close()


def _lacks_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _end_of(log: Path) -> str:
    with suppress(OSError):
        return log.read_text("utf-8", errors="replace")[-LAST_WORDS:]
    return ""

"""What the stages that gather rows have in common: requests, seeds, lineage, files."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.config import plain
from zephyr_kit.disk import put
from zephyr_kit.example import Message
from zephyr_kit.prompts import Dialogue, Prompt
from zephyr_kit.protocols import Bench, Request, Sampling
from zephyr_kit.runs import StageFolder
from zephyr_kit.stages import Writer

SEEDS = 2**31


def request(writer: Writer, dialogue: Dialogue, seed: int) -> Request:
    """What a writer is asked."""
    if writer.system is not None:
        dialogue = (Message("system", writer.system), *(message for message in dialogue if message.role != "system"))
    return Request(dialogue, Sampling(writer.max_new_tokens, writer.temperature, writer.top_p, seed))


def seed_of(*parts: object) -> int:
    """A seed from what a sample is of, not from its place: with more prompts, those known are not asked for again."""
    return random.Random(json.dumps(parts)).randrange(SEEDS)  # noqa: S311  no secret


def who_writes(writer: Writer, bench: Bench) -> dict[str, Any]:
    """Writer and sampling settings, for the lineage of a reply."""
    sampling = {"temperature": writer.temperature, "top_p": writer.top_p, "max_new_tokens": writer.max_new_tokens, "system": writer.system}
    return {"by": dict(writer.completer.fingerprint(bench)), **sampling}


def apart(prompts: Sequence[Prompt], count: int, seed: int) -> frozenset[str]:
    """So many prompts that are kept out of training, drawn by their content."""
    drawn = sorted((prompt.id for prompt in prompts), key=lambda known: seed_of("apart", seed, known))
    return frozenset(drawn[:count])


class GatherFiles(AbstractContextManager["GatherFiles"]):
    """JSON lines of a stage, in place all at once when every line is written."""

    def __init__(self, folder: StageFolder, names: Sequence[str]) -> None:
        self._folder, self._staging = folder, folder.path / ".data"
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging.mkdir()
        self._stack = ExitStack()
        self.counts = dict.fromkeys(names, 0)
        self._files = {name: self._stack.enter_context((self._staging / f"{name}.jsonl").open("w", encoding="utf-8")) for name in names}

    def write(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a line."""
        self._files[name].write(json.dumps(plain(row), ensure_ascii=False) + "\n")
        self.counts[name] += 1

    def _refuse_empty(self) -> None:
        """A later stage would find nothing to train on, or to look at."""
        train, held_out = self.counts["train"], self.counts["held_out"]
        if held_out and not train:
            where = f"stages.{self._folder.path.name}"
            raise ZkitError(f"[{where}] `held_out` takes all {held_out:,} rows that were gathered; keep fewer apart, or give more prompts")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        if error is None:
            self._refuse_empty()
            shutil.rmtree(self._folder.data, ignore_errors=True)
            put(self._staging, self._folder.data)

"""The distillation stage: a teacher writes dialogues, reply by reply and request by request (arXiv 2310.16944, section 3, step 1).

    STAGE/data/dialogues.jsonl  a line for each seed: every turn, who wrote it and how, and how the dialogue ended
    STAGE/data/train.jsonl      the dialogues in UltraChat's shape: `prompt`, `prompt_id`, `messages`
    STAGE/data/held_out.jsonl   those of the seeds that are kept apart
    STAGE/data.json             what became of every row and seed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.desk import Desk
from zephyr_kit.example import Message
from zephyr_kit.gathered import write_turns
from zephyr_kit.observe import Narrator
from zephyr_kit.prompts import Dialogue, Prompt, read_prompts
from zephyr_kit.protocols import Bench, Failure, Reply
from zephyr_kit.records import write_json
from zephyr_kit.runs import StageFolder
from zephyr_kit.stages import DistillStage, Writer
from zephyr_kit.tally import countable
from zephyr_kit.writing import GatherFiles, apart, request, seed_of, who_writes

ENOUGH = "NOTHING MORE"
NEXT_REQUEST = f"""Below is a conversation between a person and an assistant. You are the person. Write what the person says next: \
ask for more detail, follow up on a point, set a further task that builds on the last reply, or restate the first request more \
precisely if the reply missed it. Be natural and brief, and write only the person's words, without quotation marks or a name before \
them. If the person would leave content with no further wish, write only: {ENOUGH}

{{dialogue}}

What does the person say next?"""


@dataclass
class Talk:
    """A dialogue under way."""

    prompt: Prompt
    turns: list[Message]
    lineage: list[dict[str, Any]] = field(default_factory=list)
    """Of each turn after the seed."""
    end: str = ""
    """Why it has ended; empty while it goes on."""

    @property
    def whole(self) -> Dialogue:
        """The turns up to the last reply."""
        replies = [number for number, turn in enumerate(self.turns) if turn.role == "assistant" and number >= len(self.prompt.dialogue)]
        return tuple(self.turns[: replies[-1] + 1]) if replies else ()


@dataclass(frozen=True)
class Distilling:
    """A distillation stage with everything it needs at hand."""

    name: str
    task: DistillStage
    folder: StageFolder
    bench: Bench
    seed: int
    narrator: Narrator

    def run(self) -> None:
        """Write the dialogues, exchange by exchange, and mark the stage as done."""
        where = f"stages.{self.name}"
        seeds, read = read_prompts(self.task.seeds, allowed=self.task.bad_rows, where=f"{where}.seeds")
        self.narrator.say(read.told(read.write(self.folder.path)))
        desk = Desk(where, self.bench, self.narrator, self.task.max_failed, self.task.max_cost)
        talks = [Talk(prompt, list(prompt.dialogue)) for prompt in seeds]
        for exchange in range(self.task.exchanges):
            self._reply(talks, exchange, desk)
            if exchange + 1 < self.task.exchanges:
                self._ask_on(talks, exchange, desk)
        facts = self._write(talks)
        if not facts["dialogues"]:
            raise ZkitError(f"[{where}] none of {len(talks):,} seeds became a dialogue: {facts['ends']}")
        write_json(self.folder.path / "data.json", {"rows": read.facts(), **facts, **desk.facts()})
        self.narrator.say(f"{facts['dialogues']:,} dialogues of {len(talks):,} seeds, {facts['exchanges']:,} exchanges")
        self.narrator.say(desk.told())
        self.folder.finish({"seeds": len(talks), "dialogues": facts["dialogues"], "exchanges": facts["exchanges"], "cost": desk.cost})

    def _reply(self, talks: Sequence[Talk], exchange: int, desk: Desk) -> None:
        """The teacher's turn."""
        waiting = [talk for talk in talks if not talk.end]
        seeds = [seed_of(self.seed, talk.prompt.id, "reply", exchange) for talk in waiting]
        requests = [request(self.task.teacher, tuple(talk.turns), seed) for talk, seed in zip(waiting, seeds, strict=True)]
        replies = desk.complete(self.task.teacher.completer, requests, f"replies {exchange + 1}/{self.task.exchanges}")
        for talk, reply, seed in zip(waiting, replies, seeds, strict=True):
            talk.end = self._fault(reply, "reply")
            if isinstance(reply, Reply) and not talk.end:
                self._add(talk, Message("assistant", reply.text.strip()), self.task.teacher, seed)

    def _ask_on(self, talks: Sequence[Talk], exchange: int, desk: Desk) -> None:
        """The user's turn, in the teacher's words."""
        waiting = [talk for talk in talks if not talk.end]
        user = self.task.user or self.task.teacher
        seeds = [seed_of(self.seed, talk.prompt.id, "request", exchange) for talk in waiting]
        requests = [request(user, _instruction(talk.turns), seed) for talk, seed in zip(waiting, seeds, strict=True)]
        for talk, reply, seed in zip(waiting, desk.complete(user.completer, requests, f"requests {exchange + 2}"), seeds, strict=True):
            talk.end = self._fault(reply, "request")
            if isinstance(reply, Reply) and not talk.end:
                text = reply.text.strip()
                if ENOUGH in text:
                    talk.end = "the user was content"
                else:
                    self._add(talk, Message("user", text), user, seed)

    @cached_property
    def _who(self) -> dict[bool, dict[str, Any]]:
        """The user's writer, and the teacher; asked once, for a fingerprint may look at many files."""
        return {False: who_writes(self.task.user or self.task.teacher, self.bench), True: who_writes(self.task.teacher, self.bench)}

    def _fault(self, reply: Reply | Failure, what: str) -> str:
        """Why a dialogue cannot go on with this; empty if it can."""
        if isinstance(reply, Failure):
            return f"no {what}: {countable(reply.reason)}"
        if not reply.text.strip():
            return f"a blank {what}"
        return f"an unfinished {what}" if not reply.finished and self.task.unfinished == "drop" else ""

    def _add(self, talk: Talk, message: Message, writer: Writer, seed: int) -> None:
        talk.turns.append(message)
        talk.lineage.append({"role": message.role, **self._who[writer is self.task.teacher], "seed": seed})

    def _write(self, talks: Sequence[Talk]) -> dict[str, Any]:
        held_out = apart([talk.prompt for talk in talks], self.task.held_out, self.seed)
        ends: Counter[str] = Counter(talk.end or "all exchanges written" for talk in talks)
        whole = [talk for talk in talks if talk.whole]
        with GatherFiles(self.folder, ("dialogues", "train", "held_out")) as files:
            for number, talk in enumerate(talks, 1):
                known = {"prompt_id": talk.prompt.id, "origin": talk.prompt.origin}
                files.write("dialogues", {**known, "end": talk.end, "turns": write_turns(talk.turns), "written_by": talk.lineage})
                if talk.whole:
                    given = talk.prompt.dialogue
                    row = {"prompt": given[-1].content, "prompt_id": talk.prompt.id, "messages": write_turns(talk.whole)}
                    whence = {"num_given": len(given), "dialogue": f"dialogues.jsonl:{number}"}
                    files.write("held_out" if talk.prompt.id in held_out else "train", {**row, **whence})
        exchanges = sum(turn.role == "assistant" for talk in whole for turn in talk.whole[len(talk.prompt.dialogue) :])
        counts = {"seeds": len(talks), "dialogues": len(whole), "lost": len(talks) - len(whole), "exchanges": exchanges}
        return {**counts, "ends": dict(ends.most_common())}


def _instruction(turns: Sequence[Message]) -> Dialogue:
    """Asks a model to speak for the user: a chat model takes the assistant's part by itself only."""
    names = {"user": "Person", "assistant": "Assistant", "system": "Setting"}
    told = "\n\n".join(f"{names.get(turn.role, turn.role)}: {turn.content}" for turn in turns)
    return (Message("user", NEXT_REQUEST.replace("{dialogue}", told)),)

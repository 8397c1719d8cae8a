"""The feedback stage: replies are sampled, judged, and made into pairs.

    STAGE/data/feedback.jsonl   a line for each prompt: every reply, who wrote it and how, and its judgement
    STAGE/data/checks.jsonl     those judgements that were made a second time
    STAGE/data/train.jsonl      the pairs; each names its line in feedback.jsonl
    STAGE/data/held_out.jsonl   those of the prompts that are kept apart
    STAGE/judges.json           who judged, by which rubric
    STAGE/agreement.json        how far the judge agrees with others, and with itself when the order is reversed
    STAGE/data.json             what became of every row, prompt and reply
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.agreement import Agreement, compare
from zephyr_kit.candidates import Candidates, FeedbackLedger, Slot, reordered
from zephyr_kit.config import plain
from zephyr_kit.desk import Desk
from zephyr_kit.example import Example
from zephyr_kit.gathered import write_row, write_turns
from zephyr_kit.observe import Narrator
from zephyr_kit.prompts import Prompt, read_prompts
from zephyr_kit.protocols import Bench, Case, Failure, Judge, Judgement, Reply
from zephyr_kit.records import write_json
from zephyr_kit.runs import StageFolder
from zephyr_kit.stages import FeedbackStage
from zephyr_kit.writing import SEEDS, GatherFiles, apart, request, seed_of, who_writes

NUM_REASONS_TOLD = 6


@dataclass(frozen=True, slots=True)
class Check:
    """Some cases, judged a second time."""

    who: str
    numbers: Sequence[int]
    """Of the prompts."""
    said: Sequence[Judgement | Failure]
    """In the order of the judge's case."""
    agreement: Agreement


Judged = Mapping[int, Judgement | Failure]
"""By the number of the prompt; those without a case have none."""


@dataclass(frozen=True)
class Feedback:
    """A feedback stage with everything it needs at hand."""

    name: str
    task: FeedbackStage
    folder: StageFolder
    bench: Bench
    seed: int
    narrator: Narrator

    def run(self) -> None:
        """Sample, judge, pair, and mark the stage as done."""
        where = f"stages.{self.name}"
        prompts, read = read_prompts(self.task.prompts, allowed=self.task.bad_rows, where=f"{where}.prompts")
        self.narrator.say(read.told(read.write(self.folder.path)))
        desk = Desk(where, self.bench, self.narrator, self.task.max_failed, self.task.max_cost)
        candidates = self._candidates(prompts, desk)
        write_json(self.folder.path / "judges.json", {name: dict(judge.fingerprint()) for name, judge in self._judges.items()})
        cases = {number: case for number, one in enumerate(candidates) if (case := one.case) is not None}
        judged: Judged = dict(zip(cases, desk.judge(self.task.judge, list(cases.values()), "judging"), strict=True))
        checks = self._checks(candidates, cases, judged, desk)
        ledger = self._write(candidates, judged, checks)
        write_json(self.folder.path / "data.json", {"rows": read.facts(), **ledger.facts(), **desk.facts()})
        if not ledger.pairs:
            raise ZkitError(f"[{where}] {self._no_pair(ledger)}")
        agreements = [check.agreement for check in checks]
        write_json(self.folder.path / "agreement.json", [plain(agreement) for agreement in agreements])
        self._tell(ledger, agreements, desk)
        self.folder.finish({"prompts": ledger.prompts, "replies": ledger.replies, "pairs": ledger.pairs, "cost": desk.cost})

    def _no_pair(self, ledger: FeedbackLedger) -> str:
        """Why there is nothing to go on with."""
        told = f"none of {ledger.prompts:,} prompts gave a pair: {_counted(ledger.unpaired_reasons)}; of {ledger.replies:,} replies"
        mend = ' (they came to `max_new_tokens` before their end: allow more, or unfinished = "keep")'
        advice = mend if ledger.fates["unfinished"] else ""
        return f"{told}, {_counted(ledger.fates)}{advice}; all that is known is in {self.folder.path / 'data.json'}"

    def _candidates(self, prompts: Sequence[Prompt], desk: Desk) -> list[Candidates]:
        """Every reply to every prompt, one completer after another: each may hold a model in memory."""
        slots = [self._slots(prompt) for prompt in prompts]
        replies: dict[tuple[int, Slot], Reply | Failure] = {}
        for completer, writer in enumerate(self.task.completers):
            wanted = [(number, slot) for number, own in enumerate(slots) for slot in own if slot.completer == completer]
            requests = [request(writer, prompts[number].dialogue, slot.seed) for number, slot in wanted]
            written = desk.complete(writer.completer, requests, f"replies of completers[{completer}]")
            replies.update(zip(wanted, written, strict=True))
        keep = self.task.unfinished == "keep"
        pairs = enumerate(zip(prompts, slots, strict=True))
        return [Candidates(prompt, own, [replies[number, slot] for slot in own], keep) for number, (prompt, own) in pairs]

    def _slots(self, prompt: Prompt) -> list[Slot]:
        """Each sample's seed is of its writer, not of the writer's place: another one in front changes nothing for those known."""
        slots = [
            Slot(number, sample, seed_of(self.seed, prompt.id, who, self._who[:number].count(who), sample))
            for number, (writer, who) in enumerate(zip(self.task.completers, self._who, strict=True))
            for sample in range(writer.samples)
        ]
        if self.task.draw is None:
            return slots
        drawn = random.Random(f"draw {self.seed} {prompt.id}").sample(range(len(slots)), self.task.draw)  # noqa: S311  no secret
        return [slots[number] for number in sorted(drawn)]

    @cached_property
    def _who(self) -> list[dict[str, Any]]:
        """Each completer and its sampling; asked once, for a fingerprint may look at many files."""
        return [who_writes(writer, self.bench) for writer in self.task.completers]

    @property
    def _judges(self) -> dict[str, Judge]:
        seconds = {f"second_judges[{number}]": judge for number, judge in enumerate(self.task.second_judges)}
        return {"judge": self.task.judge, **seconds}

    def _checks(self, candidates: Sequence[Candidates], cases: Mapping[int, Case], judged: Judged, desk: Desk) -> list[Check]:
        """Some cases judged in reverse order, and by others; a failure costs a case of the comparison, never the stage."""
        numbers = [number for number in cases if seed_of("check", self.seed, candidates[number].prompt.id) < self.task.check * SEEDS]
        if not numbers:
            return []
        shown, firsts = [cases[number] for number in numbers], [judged[number] for number in numbers]
        backwards = [Case(case.dialogue, case.replies[::-1]) for case in shown]
        again = desk.judge(self.task.judge, backwards, "judging in reverse order", max_failed=1.0)
        opinions = {"itself with the order reversed": [_reversed(one) for one in again]}
        for name, judge in itertools.islice(self._judges.items(), 1, None):
            opinions[name] = list(desk.judge(judge, shown, f"judging by {name}", max_failed=1.0))
        return [Check(who, numbers, said, compare(f"the judge, and {who}", firsts, said)) for who, said in opinions.items()]

    def _write(self, candidates: Sequence[Candidates], judged: Judged, checks: Sequence[Check]) -> FeedbackLedger:
        ledger = FeedbackLedger()
        held_out = apart([one.prompt for one in candidates], self.task.held_out, self.seed)
        with GatherFiles(self.folder, ("feedback", "checks", "train", "held_out")) as files:
            for check in checks:
                for number, said in zip(check.numbers, check.said, strict=True):
                    opinion = candidates[number].in_order_of_slots(said) if isinstance(said, Judgement) else said
                    files.write("checks", {"feedback": f"feedback.jsonl:{number + 1}", "judge": check.who, **plain(opinion)})
            for number, one in enumerate(candidates):
                judgement = judged.get(number)
                files.write("feedback", self._line(one, judgement))
                paired = one.paired(judgement, self.task.binarise, number)
                ledger.enter(one, paired)
                for example in paired.examples:
                    files.write("held_out" if one.prompt.id in held_out else "train", self._row(one, example, number))
        return ledger

    def _line(self, candidates: Candidates, judgement: Judgement | Failure | None) -> dict[str, Any]:
        """All that is known of a prompt."""
        replies = [
            {**self._writer(slot), **plain(reply), "fate": fate}
            for slot, reply, fate in zip(candidates.slots, candidates.replies, candidates.fates, strict=True)
        ]
        opinion: dict[str, Any] = {"judge": "judges.json: judge"}
        if isinstance(judgement, Judgement):
            opinion |= {"shown_in_order": candidates.order, **plain(candidates.in_order_of_slots(judgement))}
        elif judgement is not None:
            opinion["failure"] = judgement.reason
        prompt = {"prompt_id": candidates.prompt.id, "origin": candidates.prompt.origin, "prompt": write_turns(candidates.prompt.dialogue)}
        return {**prompt, "replies": replies, "judgement": opinion if judgement is not None else None}

    def _row(self, candidates: Candidates, example: Example, number: int) -> dict[str, Any]:
        """A pair, and where its completions come from."""
        slots = [candidates.slots[candidates.slot_of(completion[-1].content)] for completion in example.completions]
        lineage = {"feedback": f"feedback.jsonl:{number + 1}", "written_by": [self._writer(slot) for slot in slots]}
        return {"prompt_id": candidates.prompt.id, **write_row(example), **lineage}

    def _writer(self, slot: Slot) -> dict[str, Any]:
        return {"completer": slot.completer, **self._who[slot.completer], "seed": slot.seed}

    def _tell(self, ledger: FeedbackLedger, agreements: Sequence[Agreement], desk: Desk) -> None:
        lost = {fate: count for fate, count in ledger.fates.items() if fate != "judged"}
        told = f"{ledger.pairs:,} pairs of {ledger.prompts:,} prompts and {ledger.replies:,} replies"
        for counts in (lost, ledger.unpaired_reasons, ledger.left_out):
            told += f"; {_counted(counts)}" if counts else ""
        self.narrator.say(told)
        self.narrator.say(desk.told())
        for one in agreements:
            if one.same_order is not None:
                self.narrator.say(f"{one.judges}: {one.same_order:.1%} of {one.pairs:,} pairs in the same order, {one.ties or 0:.1%} ties")


def _reversed(judgement: Judgement | Failure) -> Judgement | Failure:
    if isinstance(judgement, Failure):
        return judgement
    return reordered(judgement, range(len(judgement.scores))[::-1])


def _counted(counts: Mapping[str, int]) -> str:
    """The most common ones."""
    told = [f"{count:,} {reason}" for reason, count in Counter(counts).most_common(NUM_REASONS_TOLD)]
    return ", ".join(told) + (" …" if len(counts) > len(told) else "")

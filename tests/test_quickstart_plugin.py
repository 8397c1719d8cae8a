"""The miniature world is deterministic, its judge explains itself, and its suite compares models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zkit_quickstart import zkit_data_sources, zkit_judges, zkit_suites
from zkit_quickstart.judge import KNOWN_WORDS, QuickstartJudge, judge_case, points, words_of
from zkit_quickstart.source import Part, QuickstartData
from zkit_quickstart.suite import QuickstartSuite, last_question
from zkit_quickstart.teacher import MISREADINGS, SLIPS, flawed_answer
from zkit_quickstart.words import ANIMALS, PLACES, THINGS
from zkit_quickstart.world import Form, Split, draw_scene, is_held_out

from zephyr_kit import ZkitError
from zephyr_kit.batch import Batch, Tree
from zephyr_kit.example import Example, Message, check
from zephyr_kit.protocols import Bench, Case, Failure, Judgement, Reply, Request

PARTS: tuple[Part, ...] = ("text", "chat", "preference")
SPLITS: tuple[Split, ...] = ("train", "held_out")
FORMS: tuple[Form, ...] = ("story", "shorter", "next")

WISH = (Message("user", "Tell me a short story about a brave otter who finds a lantern in the old mill."),)
STORY = (
    "Luna was a brave otter who lived in the old mill. Behind a sack of flour, she found a lantern that shone like a small moon. "
    "A kind owl was looking for it, so Luna gave it back with a bow. At last Luna went home, the happiest otter of all."
)


# --- data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_rows_are_the_same_each_time_and_fewer_are_the_first_of_more(part: Part) -> None:
    rows = list(QuickstartData(part, count=50).rows())
    assert rows == list(QuickstartData(part, count=50).rows())
    assert rows[:20] == list(QuickstartData(part, count=20).rows())
    assert rows[7].origin == f"quickstart/{part}:7"


def test_rows_do_not_depend_on_the_process() -> None:
    command = (
        "from zkit_quickstart.source import QuickstartData as Q\n"
        "for part in ('text', 'chat', 'preference'): print(Q(part, count=50).fingerprint())\n"
        "import sys; assert 'torch' not in sys.modules"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", command], env=environment(hash_seed), capture_output=True, text=True, check=True).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert next(iter(outputs)).count("QuickstartData(part=") == 3


def environment(hash_seed: str) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_the_fingerprint_tells_sources_apart() -> None:
    source = QuickstartData("chat", count=20)
    others = [replace(source, count=21), replace(source, seed=1), replace(source, split="held_out"), replace(source, part="text")]
    assert len({other.fingerprint() for other in [source, *others]}) == 5


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_row_can_be_trained_on(part: Part, split: Split) -> None:
    for row in QuickstartData(part, split, count=400).rows():
        check(row)
        text = " ".join(message.content for completion in row.completions for message in (*row.prompt, *completion))
        assert "{" not in text
        assert "  " not in text


@pytest.mark.parametrize("part", ["chat", "preference"])
def test_held_out_wishes_are_never_asked_for_in_training(part: Part) -> None:
    asked = [{cast_of(row.prompt[0].content) for row in QuickstartData(part, split, count=1500).rows()} for split in SPLITS]
    assert asked[0]
    assert asked[1]
    assert asked[0].isdisjoint(asked[1])


def cast_of(request: str) -> tuple[str, ...]:
    """The animal, thing and place of a request."""
    known = (*(animal.kind for animal in ANIMALS), *(thing.name for thing in THINGS), *(place.name.split()[-1] for place in PLACES))
    found = tuple(word for word in words_of(request) if word in known)
    assert len(found) == 3, request
    return found


def test_each_pair_of_words_meets_in_training() -> None:
    assert not any(all(is_held_out(animal, thing, place) for place in range(len(PLACES))) for animal in range(12) for thing in range(16))
    assert not any(all(is_held_out(animal, thing, place) for animal in range(12)) for thing in range(16) for place in range(12))


def test_chosen_scores_above_rejected() -> None:
    for row in QuickstartData("preference", count=400).rows():
        scores = scored(row.prompt, *(completion[0].content for completion in row.completions))
        assert scores[0] > scores[1]
        assert row.scores == scores


def scored(dialogue: tuple[Message, ...], *replies: str) -> tuple[float, ...]:
    return judge_case(Case(dialogue, replies)).scores


def test_a_miniature_is_small(tmp_path: Path) -> None:
    source = QuickstartData("chat", "held_out", count=5000)
    assert not source.problems()
    assert source.miniature(tmp_path) == replace(source, count=24)


# --- judge --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_flawless_answer_of_the_teacher_has_all_points(form: Form) -> None:
    for number in range(300):
        dialogue, reply = flawless(form, Random(f"flawless {number}"))
        assert sum(points(dialogue, reply).values()) == pytest.approx(10), (dialogue, reply, points(dialogue, reply))


def flawless(form: Form, random: Random) -> tuple[tuple[Message, ...], str]:
    from zkit_quickstart.phrases import ASK_NEXT, ASK_SHORTER, REQUESTS

    scene = draw_scene(random, "train")
    request = Message("user", scene.fill(random.choice(REQUESTS)))
    reply = flawed_answer(scene, form, random, flaws=())
    if form == "story":
        return (request,), reply
    more = Message("user", scene.fill(random.choice(ASK_SHORTER if form == "shorter" else ASK_NEXT)))
    return (request, Message("assistant", flawed_answer(scene, "story", random, flaws=())), more), reply


@pytest.mark.parametrize("flaw", [*MISREADINGS, *SLIPS])
def test_every_flaw_of_the_teacher_costs_points(flaw: str) -> None:
    for number in range(100):
        scene = draw_scene(Random(f"flaw {number}"), "train")
        wish = (Message("user", scene.fill("Make up a story with a {adjective} {animal}, {a_thing} and {place}, please.")),)
        reply = flawed_answer(scene, "story", Random(number), flaws=(flaw,))
        assert scored(wish, reply)[0] <= 9.0, reply


ORDERED = (
    f"{STORY} Sweet dreams!",
    STORY,
    STORY.replace("otter", "fox"),
    f"{STORY.replace('otter', 'fox').replace('old mill', 'apple garden')} Now go away.",
    "Brave brave brave brave brave brave brave brave.",
    "Zwrk qqp xx mnmn otterr lanterm trr wff.",
    "",
)


def test_the_judge_orders_answers_as_a_reader_would() -> None:
    scores = scored(WISH, *ORDERED)
    assert scores[0] == 10
    assert list(scores) == sorted(scores, reverse=True)
    assert len(set(scores[:5])) == 5
    assert scores[-1] == 0
    assert min(scores) >= 0


def test_points_say_why() -> None:
    assert points(WISH, STORY) == {
        "names otter": pytest.approx(5 / 3),
        "names lantern": pytest.approx(5 / 3),
        "names old mill": pytest.approx(5 / 3),
        "asked length": 1,
        "nothing repeated": 1,
        "whole sentences": 1,
        "proper ending": 1,
        "friendly closing": 0,
    }
    assert points(WISH, f"{STORY} Now go away.")["rude"] == -2
    assert points(WISH, f"{STORY} A duck came by.")["not asked for"] == -1
    assert points(WISH, f"{STORY} Pip came by.")["several heroes"] == -1
    assert points(WISH, f"{STORY} Zwrk!")["unknown words"] == -0.5


def test_a_judgement_says_why() -> None:
    judgement = judge_case(Case(WISH, (f"{STORY} Sweet dreams!", f"{STORY.replace('otter', 'fox')} Now go away.")))
    assert judgement.scores == (10, pytest.approx(10 - 5 / 3 - 1 - 1 - 2))
    assert judgement.aspects["names otter"] == (pytest.approx(5 / 3), 0)
    assert judgement.aspects["rude"] == (0, -2)
    assert all(len(granted) == 2 for granted in judgement.aspects.values())
    assert judgement.remarks == ("", "names otter: 0, friendly closing: 0, not asked for: -1, rude: -2")


def test_a_follow_up_is_judged_in_the_light_of_the_first_wish() -> None:
    shorter = (*WISH, Message("assistant", "A bell rang."), Message("user", "Make it shorter, please."))
    good = "Luna the brave otter found a lantern in the old mill and made a new friend. Sweet dreams!"
    assert scored(shorter, good, f"{STORY} Sweet dreams!") == (10, 9)
    sequel = (*shorter[:2], Message("user", "What did Luna do next?"))
    good = "A week later, Luna painted the lantern blue and gave it to a wise goat. At last Luna went home, the happiest otter of all."
    assert scored(sequel, f"{good} Sweet dreams!", good) == (10, 9)


def test_a_wish_from_elsewhere_is_judged_without_a_fuss() -> None:
    for dialogue in ((Message("user", "What is the capital of France?"),), (Message("system", "Be kind."),), ()):
        assert 0 <= scored(dialogue, STORY)[0] <= 10


def test_the_world_is_small() -> None:
    assert 200 < len(KNOWN_WORDS) < 500
    lengths = [len(row.completions[0][-1].content.split()) for row in QuickstartData("chat", count=300).rows()]
    assert max(lengths) < 120
    assert 40 < sorted(lengths)[150] < 70


# --- suite --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Letters:
    """A tokenizer whose tokens are letters."""

    def encode(self, example: Example) -> Tree:
        completions = tuple(letters("".join(message.content for message in completion)) for completion in example.completions)
        prompt = letters("".join(message.content for message in example.prompt))
        return Tree(prompt, completions, tuple(np.ones(len(ids), dtype=np.bool_) for ids in completions))

    def fingerprint(self) -> str:
        return "letters"


def letters(text: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int32)


@dataclass
class FakePolicy:
    """Gives each letter the same log-probability, so that it likes short answers; replies with one text."""

    text: str
    logp: float
    module: nn.Module = field(default_factory=lambda: nn.Linear(1, 1))
    num_asked: int = 0

    def score(self, batch: Batch) -> Tensor:
        assert not torch.is_grad_enabled()
        assert len(batch.tokens_T) < 4000
        return torch.full((len(batch.target_M),), self.logp)

    def generate(self, requests: Sequence[Request], *, on_text: Callable[[str], None] | None = None) -> Iterator[tuple[int, Reply]]:
        assert {request.sampling.max_new_tokens for request in requests} == {120}
        assert {request.sampling.temperature for request in requests} == {0.7}
        assert len({request.sampling.seed for request in requests}) == len(requests)
        self.num_asked += len(requests)
        yield from ((number, Reply(self.text, finished=self.text.endswith("."))) for number in reversed(range(len(requests))))

    def keep_reference(self) -> None: ...

    def reference(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    def save(self, folder: Path) -> None: ...


def entering(policy: FakePolicy, entered: list[str]) -> Callable[[], AbstractContextManager[FakePolicy]]:
    @contextmanager
    def enter() -> Iterator[FakePolicy]:
        assert not entered, "one at a time"
        entered.append(policy.text)
        yield policy
        entered.pop()

    return enter


def test_the_suite_compares_models(tmp_path: Path) -> None:
    entered: list[str] = []
    policies = {"base": FakePolicy("Zwrk.", -2.0), "sft": FakePolicy(STORY, -1.0), "dpo": FakePolicy(f"{STORY} Sweet dreams!", -0.5)}
    suite = QuickstartSuite(prompts=40, pairs=30, judge=QuickstartJudge())
    found = suite.evaluate({name: entering(policy, entered) for name, policy in policies.items()}, Letters(), tmp_path / "new")
    assert list(found.rows) == ["base", "sft", "dpo"]
    assert all(set(row) == set(found.columns) for row in found.rows.values())
    assert [row["loss"] for row in found.rows.values()] == pytest.approx([2.0, 1.0, 0.5])
    assert [row["wins over sft"] for row in found.rows.values()] == [0.0, None, 1.0]
    scores = [row["task score"] for row in found.rows.values()]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[2] is not None
    assert scores[0] < scores[1] < scores[2]
    longer = [len(row.completions[0][0].content) > len(row.completions[1][0].content) for row in held_out_pairs(30)]
    assert found.rows["base"]["reward accuracy"] == sum(not long for long in longer) / 30 - equal_length_share(30)
    assert found.rows["sft"]["reward accuracy"] is None
    assert found.rows["dpo"]["reward accuracy"] == sum(longer) / 30
    assert [policy.num_asked for policy in policies.values()] == [40, 40, 40]
    lines = [json.loads(line) for line in (tmp_path / "new" / "replies.jsonl").read_text().splitlines()]
    assert len(lines) == 120
    assert set(lines[0]) == {"model", "prompt", "reply", "points"}
    assert len(found.samples) == 3
    assert set(found.samples[0]) == {"prompt", "base", "sft", "dpo"}
    assert found.samples[0]["base"] == "Zwrk."
    assert found.samples[0]["dpo"] == f"{STORY} Sweet dreams! …", "one that was cut says so"


def held_out_pairs(count: int) -> list[Example]:
    return list(QuickstartData("preference", "held_out", count).rows())


def equal_length_share(count: int) -> float:
    """Share of pairs whose completions are equally long, which this policy cannot tell apart."""
    return sum(len({len(completion[0].content) for completion in row.completions}) == 1 for row in held_out_pairs(count)) / count


def test_the_suite_ends_when_a_reply_cannot_be_judged(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Absent(QuickstartJudge):
        def judge(self, cases: Sequence[Case], bench: Bench) -> Iterator[tuple[int, Judgement | Failure]]:
            assert bench.device.type == "cpu"
            yield from ((number, Failure("nobody is in")) for number in range(len(cases)))

    suite = QuickstartSuite(prompts=2, pairs=2, judge=Absent())
    with pytest.raises(ZkitError, match="suite quickstart: a reply could not be judged: nobody is in"):
        suite.evaluate({"sft": entering(FakePolicy(STORY, -1.0), [])}, Letters(), tmp_path)


def test_the_suite_refuses_to_compare_with_a_model_that_is_not_there(tmp_path: Path) -> None:
    suite = QuickstartSuite(against="sfft", judge=QuickstartJudge())
    with pytest.raises(ZkitError, match="there is no such stage; did you mean `sft`"):
        suite.evaluate({"sft": entering(FakePolicy(STORY, -1.0), [])}, Letters(), tmp_path)


def test_a_miniature_suite_takes_seconds(tmp_path: Path) -> None:
    judge = QuickstartJudge()
    small = QuickstartSuite(prompts=1000, against="first", judge=judge).miniature(tmp_path)
    assert small == QuickstartSuite(prompts=4, pairs=4, max_new_tokens=8, against="first", judge=judge)


def test_a_question_is_the_dialogue_without_its_last_answer() -> None:
    for chat in QuickstartData("chat", count=50).rows():
        question = last_question(chat)
        assert question[-1].role == "user"
        assert len(question) in (1, 3)


# --- plugin -------------------------------------------------------------------------------


def test_the_plugin_offers_its_parts_by_name() -> None:
    assert zkit_data_sources() == {"quickstart": QuickstartData}
    assert zkit_judges() == {"quickstart": QuickstartJudge}
    assert zkit_suites() == {"quickstart": QuickstartSuite}

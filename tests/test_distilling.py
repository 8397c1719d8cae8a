"""The distillation stage: a teacher's dialogues, turn by turn, every seed accounted for."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from toys import Listener, Prompts, Scribe, bench

from zephyr_kit import ZkitError
from zephyr_kit.distilling import ENOUGH, Distilling
from zephyr_kit.example import check
from zephyr_kit.gathered import GatheredRows
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import Failure, Reply, Request
from zephyr_kit.runs import StageFolder
from zephyr_kit.stages import DistillStage, Writer


def seed_number(request: Request) -> int:
    """Which of the prompts a request is about, also when it is about the user's next request."""
    return int(request.dialogue[0].content.partition("question ")[2].split()[0])


def is_for_the_user(request: Request) -> bool:
    return "You are the person" in request.dialogue[0].content


def write(request: Request) -> Reply:
    if is_for_the_user(request):
        return Reply(f"and after reply {request.dialogue[0].content.count('Assistant: ')}? ", cost=0.1)
    return Reply(f" reply {sum(turn.role == 'user' for turn in request.dialogue)}", cost=0.1)


def run(folder: Path, scribe: Scribe, **options: Any) -> tuple[Path, list[str]]:
    place, listener, table = StageFolder(folder / "distill"), Listener(), bench(folder / "answers")
    place.path.mkdir(parents=True, exist_ok=True)
    task = DistillStage(**{"seeds": (Portion(Prompts(6)),), "teacher": Writer(scribe), "max_failed": 0.5, **options})
    with closing(table.answers):
        Distilling("distill", task, place, table, 0, listener).run()
    return place.path, listener.lines


def rows(path: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()]


def test_dialogues_have_the_shape_of_ultrachat(tmp_path):
    path, told = run(tmp_path, Scribe(write), held_out=2)
    train, apart = rows(path, "train"), rows(path, "held_out")
    assert (len(train), len(apart)) == (4, 2)
    for row in (*train, *apart):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"] * 3
        replies = ["reply 1", "and after reply 1?", "reply 2", "and after reply 2?", "reply 3"]
        assert [turn["content"] for turn in row["messages"]] == [row["prompt"], *replies]
    for example in GatheredRows("distill", path / "data" / "train.jsonl").rows():
        check(example)
    assert told[1] == "6 dialogues of 6 seeds, 18 exchanges"


def test_every_turn_leads_back_to_who_wrote_it(tmp_path):
    user = Writer(Scribe(write, name="impatient"), temperature=0.5)
    path, _ = run(tmp_path, Scribe(write), user=user)
    for row in rows(path, "train"):
        name, _, line = row["dialogue"].partition(":")
        source = rows(path, name.removesuffix(".jsonl"))[int(line) - 1]
        assert source["turns"] == row["messages"]
        by = [(one["role"], one["by"]["use"], one["temperature"]) for one in source["written_by"]]
        assert by == [("assistant", "scribe", 1.0), *[("user", "impatient", 0.5), ("assistant", "scribe", 1.0)] * 2]
        assert source["origin"] == f"questions:{row['prompt'].split()[1]}"


def test_every_seed_is_accounted_for(tmp_path):
    def odd(request: Request) -> Reply | Failure:
        number, asks = seed_number(request), is_for_the_user(request)
        if number == 0:
            return Failure("busy")
        if number == 1 and asks:
            return Reply(f"{ENOUGH}.")
        if number == 2 and asks:
            return Failure("busy")
        if number == 3 and asks:
            return Reply("and then wha", finished=False)
        if number == 4 and len(request.dialogue) > 1:
            return Reply("it never en", finished=False)
        return write(request)

    path, _ = run(tmp_path, Scribe(odd))
    facts = json.loads((path / "data.json").read_text())
    assert (facts["seeds"], facts["dialogues"], facts["lost"]) == (6, 5, 1)
    assert sum(facts["ends"].values()) == facts["seeds"]
    assert facts["ends"] == {
        "no reply: busy": 1,
        "the user was content": 1,
        "no request: busy": 1,
        "an unfinished request": 1,
        "an unfinished reply": 1,
        "all exchanges written": 1,
    }
    assert Counter(len(row["messages"]) for row in rows(path, "train")) == {2: 4, 6: 1}
    assert facts["exchanges"] == 4 + 3


def test_a_second_run_asks_nobody_and_a_stopped_one_goes_on(tmp_path):
    stops = [20]

    def stopping(request: Request) -> Reply:
        stops[0] -= 1
        if stops[0] < 0:
            raise KeyboardInterrupt
        return write(request)

    scribe = Scribe(stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, scribe)
    stops[0] = 1000
    path, _ = run(tmp_path, scribe)
    assert len(scribe.asked) == 30 + 1
    run(tmp_path, scribe)
    assert len(scribe.asked) == 31
    straight, _ = run(tmp_path / "straight", Scribe(write))
    assert rows(path, "train") == rows(straight, "train")


def test_no_dialogue_at_all_is_an_error(tmp_path):
    with pytest.raises(ZkitError, match="none of 6 seeds became a dialogue"):
        run(tmp_path, Scribe(lambda _: Reply(" ")))


def test_the_first_request_may_be_all(tmp_path):
    path, _ = run(tmp_path, Scribe(write), exchanges=1)
    assert all(len(row["messages"]) == 2 for row in rows(path, "train"))

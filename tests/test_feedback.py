"""The feedback stage: every row, prompt and reply accounted for, nothing asked twice, every pair traced back."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from toys import Listener, Prompts, Referee, Scribe, bench

from zephyr_kit import ZkitError
from zephyr_kit.binarise import Binarise
from zephyr_kit.desk import Desk
from zephyr_kit.example import Example, Message
from zephyr_kit.feedback import Feedback
from zephyr_kit.gathered import GatheredRows, read_row, write_row
from zephyr_kit.portion import Portion
from zephyr_kit.prompts import read_prompts
from zephyr_kit.protocols import Failure, Judgement, Reply, Request
from zephyr_kit.runs import StageFolder
from zephyr_kit.stages import FeedbackStage, Writer


def number_of(text: str) -> int:
    return int(text.split()[1])


def by_seed(request: Any) -> Reply:
    return Reply(f"{request.dialogue[-1].content}: {'very ' * (request.sampling.seed % 50)}good", cost=0.125)


def by_length(reply: str, place: int) -> float:
    return float(len(reply))


def stage(*writers: Writer, **options: Any) -> FeedbackStage:
    default = {"prompts": (Portion(Prompts()),), "judge": Referee(by_length), "check": 0.0, "max_failed": 0.5}
    return FeedbackStage(completers=writers or (Writer(Scribe(by_seed), samples=4),), **{**default, **options})


def run(task: FeedbackStage, folder: Path, *, seed: int = 0) -> tuple[Path, list[str]]:
    place, listener = StageFolder(folder / "feedback"), Listener()
    place.path.mkdir(parents=True, exist_ok=True)
    table = bench(folder / "answers")
    with closing(table.answers):
        Feedback("feedback", task, place, table, seed, listener).run()
    return place.path, listener.lines


def rows(path: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()]


def facts(path: Path) -> dict[str, Any]:
    return json.loads((path / "data.json").read_text("utf-8"))


def check_sums(told: dict[str, Any]) -> None:
    read = told["rows"]
    assert read["read"] == read["taken"] + read["repeated"] + read["removed"] + read["bad"]
    assert read["taken"] == told["prompts"] == told["paired"] + told["unpaired"]
    assert told["unpaired"] == sum(told["unpaired_reasons"].values())
    assert told["replies"] == sum(told["fates"].values())


def test_the_best_is_chosen_and_each_pair_leads_back_to_who_wrote_and_judged_it(tmp_path):
    principled = Writer(Scribe(by_seed, name="other"), samples=2, temperature=0.3, system="Be brief.")
    path, _ = run(stage(Writer(Scribe(by_seed), samples=2), principled), tmp_path)
    feedback = rows(path, "feedback")
    assert len(feedback) == 12
    for row in rows(path, "train"):
        name, _, line = row["feedback"].partition(":")
        source = rows(path, name.removesuffix(".jsonl"))[int(line) - 1]
        assert source["prompt"] == row["prompt"]
        assert source["origin"] == f"questions:{number_of(row['prompt'][0]['content'])}"
        scores = {reply["text"]: len(reply["text"]) for reply in source["replies"]}
        assert row["score_chosen"] == max(scores.values()) == scores[row["chosen"][0]["content"]]
        assert row["score_rejected"] == scores[row["rejected"][0]["content"]] < row["score_chosen"]
        for side, who in zip(("chosen", "rejected"), row["written_by"], strict=True):
            written = next(reply for reply in source["replies"] if reply["text"] == row[side][0]["content"])
            assert (written["completer"], written["seed"], written["by"]) == (who["completer"], who["seed"], who["by"])
            expected = [("scribe", 1.0, None), ("other", 0.3, "Be brief.")][who["completer"]]
            assert (who["by"]["use"], who["temperature"], who["system"]) == expected
        assert source["judgement"]["judge"] == "judges.json: judge"
        assert json.loads((path / "judges.json").read_text())["judge"] == {"use": "referee"}
        assert source["judgement"]["scores"] == [scores[text] for text in scores]
        assert source["judgement"]["remarks"] == [f"said {text}" for text in scores]
    check_sums(facts(path))


def test_its_rows_are_examples_for_a_later_stage(tmp_path):
    path, _ = run(stage(held_out=3), tmp_path)
    train, held_out = (list(GatheredRows("feedback", path / "data" / f"{name}.jsonl").rows()) for name in ("train", "held_out"))
    assert (len(train), len(held_out)) == (9, 3)
    assert not {one.prompt for one in train} & {one.prompt for one in held_out}
    assert all(one.scores[0] > one.scores[1] and len(one.completions) == 2 for one in (*train, *held_out))
    assert train[0].origin == f"{path}/data/train.jsonl:1"


def test_ranked_replies_are_kept_whole(tmp_path):
    path, _ = run(stage(binarise=Binarise(rule="ranked")), tmp_path)
    for example in GatheredRows("feedback", path / "data" / "train.jsonl").rows():
        assert len(example.completions) == 4
        assert list(example.scores) == sorted(example.scores, reverse=True)


def test_a_second_run_asks_nobody(tmp_path):
    scribe, referee = Scribe(by_seed), Referee(by_length)
    task = stage(Writer(scribe, samples=4), judge=referee, check=1.0)
    path, _ = run(task, tmp_path)
    asked, first = (len(scribe.asked), len(referee.asked)), rows(path, "train")
    assert asked == (48, 24)  # a second time in reverse order
    run(task, tmp_path)
    assert (len(scribe.asked), len(referee.asked)) == asked
    assert rows(path, "train") == first
    assert facts(path)["requests"] == {"questions": 72, "known": 72, "failed": 0}
    assert facts(path)["cost"] == pytest.approx(48 * 0.125 + 24 * 0.5)


def test_equal_questions_are_asked_once(tmp_path):
    scribe = Scribe(lambda _: Reply("the same", cost=0.5))
    table = bench(tmp_path / "answers")
    desk = Desk("stages.feedback", table, Listener(), 1.0)
    twins = [Request((Message("user", text),)) for text in "abab"]
    with closing(table.answers):
        assert [reply.text for reply in desk.complete(scribe, twins, "replies")] == ["the same"] * 4
        assert (len(scribe.asked), desk.cost, desk.asked["known"]) == (2, 1.0, 0)
        failing = Scribe(lambda _: Failure("busy"), name="other")
        assert list(desk.complete(failing, twins, "replies")) == [Failure("busy")] * 4
        assert len(failing.asked) == 2


def test_more_prompts_ask_for_these_alone_and_another_judge_for_judgements_alone(tmp_path):
    scribe, referee = Scribe(by_seed), Referee(by_length)
    run(stage(Writer(scribe, samples=4), judge=referee), tmp_path)
    run(stage(Writer(scribe, samples=4), judge=referee, prompts=(Portion(Prompts(15)),)), tmp_path)
    assert (len(scribe.asked), len(referee.asked)) == (60, 15)
    other = Referee(by_length, name="other")
    run(stage(Writer(scribe, samples=4), judge=other), tmp_path)
    assert (len(scribe.asked), len(other.asked)) == (60, 12)


def test_a_stage_that_is_stopped_goes_on_where_it_was(tmp_path):
    stops = [30]

    def write(request: Any) -> Reply:
        stops[0] -= 1
        if stops[0] < 0:
            raise KeyboardInterrupt
        return by_seed(request)

    scribe = Scribe(write)
    task = stage(Writer(scribe, samples=4))
    with pytest.raises(KeyboardInterrupt):
        run(task, tmp_path)
    assert not (tmp_path / "feedback" / "data").exists()
    stops[0] = 1000
    path, _ = run(task, tmp_path)
    asked = Counter((request.dialogue, request.sampling.seed) for request in scribe.asked)
    assert len(asked) == 48
    assert sum(asked.values()) == 49  # the one that was under way
    straight, _ = run(stage(), tmp_path / "straight")
    assert rows(path, "train") == rows(straight, "train")


def test_the_judge_sees_replies_in_an_order_of_their_own(tmp_path):
    """A judge that takes the first for the best finds none better than others; its scores go to the replies it saw."""
    path, _ = run(stage(prompts=(Portion(Prompts(200)),), judge=Referee(lambda _, place: float(-place))), tmp_path)
    best = Counter()
    for row in rows(path, "feedback"):
        scores = row["judgement"]["scores"]
        assert row["judgement"]["shown_in_order"][0] == scores.index(max(scores))
        best[scores.index(max(scores))] += 1
    assert set(best) == {0, 1, 2, 3}
    assert min(best.values()) > 30


def test_every_reply_has_a_fate(tmp_path):
    def write(request: Any) -> Reply | Failure:
        number, odd = number_of(request.dialogue[-1].content), request.sampling.seed % 4
        if number == 0:
            return Failure("the line was dead")
        if number == 1:
            return Reply("the same")
        if number == 2:
            return Reply(f"{request.sampling.seed} cut sho", finished=False)
        return [Reply("  "), Reply("the same"), by_seed(request), Reply(f"{request.sampling.seed} cut sho", finished=False)][odd]

    referee = Referee(by_length, fails=lambda case: "no idea" if case.dialogue[-1].content == "question 7" else "")
    path, told = run(stage(Writer(Scribe(write), samples=8), judge=referee, prompts=(Portion(Prompts(40, bad=0)),)), tmp_path)
    ledger = facts(path)
    check_sums(ledger)
    assert set(ledger["fates"]) == {"judged", "failed", "blank", "repeated", "unfinished"}
    assert ledger["failures"] == {"the line was dead": 8}
    assert ledger["unpaired_reasons"]["not judged: no idea"] == 1
    assert ledger["unpaired_reasons"]["fewer than two different replies"] >= 3
    fates = Counter(reply["fate"] for row in rows(path, "feedback") for reply in row["replies"])
    assert fates == ledger["fates"]
    failed = next(row for row in rows(path, "feedback") if row["prompt"][0]["content"] == "question 7")
    assert failed["judgement"]["failure"] == "no idea"
    assert any("8 failed" in line for line in told)


def test_unfinished_replies_may_be_kept(tmp_path):
    scribe = Scribe(lambda request: Reply(f"{request.sampling.seed} cut sho", finished=False))
    path, _ = run(stage(Writer(scribe, samples=2), unfinished="keep", binarise=Binarise(ties="keep")), tmp_path)
    assert facts(path)["fates"] == {"judged": 24}


def test_too_many_failures_stop_the_stage_early_and_nothing_is_lost(tmp_path):
    bad = {"question 9", "question 8"}
    scribe = Scribe(lambda request: Failure("busy") if request.dialogue[-1].content in bad else by_seed(request))
    with pytest.raises(ZkitError, match=r"\[stages.feedback\] replies of completers\[0\]: 5 of 48 requests have failed") as caught:
        run(stage(Writer(scribe, samples=4), max_failed=0.1), tmp_path)
    assert "5 x busy" in str(caught.value)
    assert len(scribe.asked) < 48
    before = len(scribe.asked) - 5
    bad.clear()
    run(stage(Writer(scribe, samples=4), max_failed=0.1), tmp_path)
    assert len(scribe.asked) == 48 + 5
    assert before > 0


def test_the_cost_is_limited(tmp_path):
    scribe = Scribe(by_seed)
    with pytest.raises(ZkitError, match=r"max_cost = 2: the answers so far have cost 2.12 dollars"):
        run(stage(Writer(scribe, samples=4), max_cost=2.0), tmp_path)
    assert len(scribe.asked) == 17
    path, told = run(stage(Writer(scribe, samples=4), max_cost=20.0), tmp_path)
    assert len(scribe.asked) == 48
    assert facts(path)["cost"] == pytest.approx(12.0)
    assert any("12.00 dollars" in line for line in told)


def test_so_many_samples_are_drawn_for_each_prompt(tmp_path):
    writers = [Writer(Scribe(by_seed, name=name), samples=2) for name in "abc"]
    path, _ = run(stage(*writers, draw=3, prompts=(Portion(Prompts(200)),)), tmp_path)
    drawn = [tuple((reply["completer"], reply["seed"]) for reply in row["replies"]) for row in rows(path, "feedback")]
    assert {len(set(one)) for one in drawn} == {3}
    by = Counter(completer for one in drawn for completer, _ in one)
    assert all(abs(count - 200) < 45 for count in by.values())
    with pytest.raises(ValueError, match="only 6 samples"):
        stage(*writers, draw=7)


def test_agreement_is_reported(tmp_path):
    contrary = Referee(lambda reply, _: -len(reply), name="contrary")
    path, told = run(stage(check=1.0, second_judges=(Referee(by_length, name="twin"), contrary)), tmp_path)
    itself, twin, other = json.loads((path / "agreement.json").read_text())
    assert [one["same_order"] for one in (itself, twin, other)] == [1.0, 1.0, 0.0]
    assert [one["same_best"] for one in (itself, twin, other)] == [1.0, 1.0, 0.0]
    assert itself["cases"] == 12
    assert itself["pairs"] > 30
    assert any("100.0% of" in line and "order reversed" in line for line in told)


def test_a_judge_that_takes_the_first_for_the_best_is_found_out(tmp_path):
    path, _ = run(stage(check=1.0, judge=Referee(lambda _, place: float(-place))), tmp_path)
    (itself,) = json.loads((path / "agreement.json").read_text())
    assert itself["same_order"] == 0.0


def test_bad_prompts_are_counted_and_too_many_refused(tmp_path):
    path, told = run(stage(prompts=(Portion(Prompts(12, bad=1)), Portion(Prompts(5))), bad_rows=0.1), tmp_path)
    odd = [json.loads(line) for line in (path / "data.quarantine.jsonl").read_text().splitlines()]
    assert Counter(line["fate"] for line in odd) == {"repeated": 5, "bad": 1}
    assert odd[0] == {"origin": "questions:12", "fate": "bad", "reason": "a smudge"}
    assert odd[1]["reason"] == "the same prompt as an earlier row (questions:0)"
    assert told[0].startswith("prompts: 12 of 18 rows; 5 the same prompt as an earlier row; 1 a smudge (all in ")
    read = facts(path)["rows"]
    assert (read["read"], read["taken"], read["repeated"], read["bad"]) == (18, 12, 5, 1)
    with pytest.raises(ZkitError, match=r"stages.feedback.prompts: 3 of 15 rows give no prompt"):
        run(stage(prompts=(Portion(Prompts(12, bad=3)),)), tmp_path)


@pytest.mark.parametrize("prompt", [(), (Message("system", "Be kind."),), (Message("user", "a"), Message("assistant", "b"))])
def test_what_waits_for_no_reply_is_no_prompt(prompt, monkeypatch):
    monkeypatch.setattr(Prompts, "rows", lambda self: iter([Example(prompt, (), origin="here"), Example((Message("user", "a"),), ())]))
    prompts, read = read_prompts([Portion(Prompts())], allowed=0.5, where="prompts")
    assert (len(prompts), read.bad) == (1, 1)


def test_no_pair_at_all_is_an_error(tmp_path):
    told = "none of 12 prompts gave a pair: 12 fewer than two different replies; of 48 replies, 36 repeated, 12 judged; all that is"
    with pytest.raises(ZkitError, match=told):
        run(stage(Writer(Scribe(lambda _: Reply("the same")), samples=4)), tmp_path)
    with pytest.raises(ZkitError, match=r"48 unfinished \(they came to `max_new_tokens` before their end"):
        run(stage(Writer(Scribe(lambda _: Reply("and so", finished=False), name="slow"), samples=4)), tmp_path)
    assert facts(tmp_path / "feedback")["fates"] == {"unfinished": 48}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("a text", r"completer Scribe gave 'a text', not a Reply or a Failure"),
        (Reply(None), "completer Scribe gave Reply"),
    ],
)
def test_a_completer_that_gives_something_else_is_named_and_nothing_of_it_is_kept(tmp_path, answer, message):
    with pytest.raises(ZkitError, match=message):
        run(stage(Writer(Scribe(lambda _: answer), samples=4)), tmp_path)
    run(stage(), tmp_path)


@pytest.mark.parametrize(
    ("judgement", "message"),
    [
        (Judgement((1.0,)), "judge Referee gave 1 scores for 4 replies"),
        (Judgement((1.0, 2.0, 3.0, float("inf"))), "judge Referee gave inf among its scores, not a number"),
        (Judgement((1.0, 2.0, 3.0, "4")), "judge Referee gave '4' among its scores"),
        (Judgement((1.0, 2.0, 3.0, 4.0), {"style": (1.0, None)}), "judge Referee gave 2 style for 4 replies"),
        (Judgement((1.0, 2.0, 3.0, 4.0), {}, ("good",)), "judge Referee gave 1 remarks for 4 replies"),
        ("fine", "judge Referee gave 'fine', not a Judgement or a Failure"),
    ],
)
def test_a_judge_that_gives_something_else_is_named_and_nothing_of_it_is_kept(tmp_path, monkeypatch, judgement, message):
    with monkeypatch.context() as patch:
        patch.setattr(Referee, "judge", lambda self, cases, bench: iter([(0, judgement)]))
        with pytest.raises(ZkitError, match=message):
            run(stage(), tmp_path)
    run(stage(), tmp_path)


def test_an_answer_under_a_number_that_was_not_asked_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Referee, "judge", lambda self, cases, bench: iter([(99, Failure("busy"))]))
    with pytest.raises(ZkitError, match="an answer came under the number 99, which was not asked for"):
        run(stage(), tmp_path)


def test_second_judgements_are_kept_beside_the_first(tmp_path):
    path, _ = run(stage(check=1.0, second_judges=(Referee(lambda reply, _: -len(reply), name="contrary"),)), tmp_path)
    first = {number: row["judgement"]["scores"] for number, row in enumerate(rows(path, "feedback"), 1)}
    for check in rows(path, "checks"):
        scores = first[int(check["feedback"].partition(":")[2])]
        sign = 1 if check["judge"] == "itself with the order reversed" else -1
        assert check["scores"] == [sign * score for score in scores]
    assert len(rows(path, "checks")) == 24


def test_a_completer_in_front_changes_nothing_for_those_known(tmp_path):
    known, new = Scribe(by_seed, name="known"), Scribe(by_seed, name="new")
    run(stage(Writer(known, samples=2), Writer(known, samples=2)), tmp_path)
    assert len(known.asked) == 48
    run(stage(Writer(new, samples=1), Writer(known, samples=2), Writer(known, samples=3)), tmp_path)
    assert (len(known.asked), len(new.asked)) == (48 + 12, 12)


def test_more_prompts_are_checked_beside_those_that_were(tmp_path):
    referee = Referee(by_length)
    run(stage(judge=referee, check=0.5, prompts=(Portion(Prompts(40)),)), tmp_path)
    before = len(referee.asked)
    assert 45 < before < 75
    run(stage(judge=referee, check=0.5, prompts=(Portion(Prompts(10)), Portion(Prompts(40)))), tmp_path)
    assert len(referee.asked) == before


def test_checks_that_fail_never_end_the_stage(tmp_path):
    seen = set()

    def second_time(case: Any) -> str:
        again = case.dialogue in seen
        seen.add(case.dialogue)
        return "gone home" if again else ""

    path, _ = run(stage(judge=Referee(by_length, fails=second_time), check=1.0, max_failed=0.0), tmp_path)
    (itself,) = json.loads((path / "agreement.json").read_text())
    assert itself["cases"] == 0
    with pytest.raises(ValueError, match="they would be shown nothing"):
        stage(check=0.0, second_judges=(Referee(by_length),))


def test_rows_that_are_all_kept_apart_are_refused(tmp_path):
    with pytest.raises(ZkitError, match=r"\[stages.feedback\] `held_out` takes all 12 rows"):
        run(stage(held_out=12), tmp_path)
    assert not (tmp_path / "feedback" / "data").exists()


def test_a_cost_that_nobody_knows_cannot_be_limited(tmp_path):
    prices = [None]
    scribe = Scribe(lambda request: Reply(by_seed(request).text, cost=prices[0]))
    run(stage(Writer(scribe, samples=4)), tmp_path)
    with pytest.raises(ZkitError, match="max_cost = 100 cannot be held: a completer or judge has no `price`"):
        run(stage(Writer(scribe, samples=4), max_cost=100.0), tmp_path)
    prices[0] = 0.5  # those known without a cost are asked of the completer, which knows it
    path, _ = run(stage(Writer(scribe, samples=4), max_cost=100.0), tmp_path)
    assert facts(path)["cost"] == pytest.approx(24 + 6)


def test_failures_are_paid_for(tmp_path):
    with pytest.raises(ZkitError, match="max_cost = 1"):
        run(stage(Writer(Scribe(lambda _: Failure("nonsense", cost=0.3)), samples=4), max_cost=1.0, max_failed=1.0), tmp_path)


def test_reasons_are_counted_without_their_particulars(tmp_path):
    def write(request: Any) -> Reply | Failure:
        seed = request.sampling.seed
        return by_seed(request) if seed % 3 else Failure(f"too long ({seed} tokens)")

    scribe = Scribe(write)
    path, _ = run(stage(Writer(scribe, samples=4)), tmp_path)
    assert set(facts(path)["failures"]) == {"too long"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_row_is_read_as_it_was_written(count):
    prompt = (Message("system", "Be kind."), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    completions = tuple((Message("assistant", f"reply {number}"),) for number in range(count))
    example = Example(prompt, completions, tuple(float(number) for number in range(count)))
    assert read_row(json.loads(json.dumps(write_row(example)))) == example

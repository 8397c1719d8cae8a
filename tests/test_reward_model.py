"""Reward models as judges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from asking import CPU, judged
from tiny import SHAPE
from zkit_feedback.classifier import batches
from zkit_feedback.reward import RewardModel
from zkit_mistral.scratch import byte_pairs
from zkit_mistral.templates import ZEPHYR

from zephyr_kit import ZkitError
from zephyr_kit.answers import Answers
from zephyr_kit.example import Message
from zephyr_kit.protocols import Bench, Case, Failure, Judgement
from zephyr_kit.testing import JudgeLaws

QUESTION = (Message("user", "What floats?"),)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    answers = Answers(tmp_path / "answers")
    yield Bench(CPU, answers)
    answers.close()


@pytest.fixture(scope="module", params=["Mistral", "Llama"])
def reward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return reward_model(tmp_path_factory.mktemp("reward"), request.param)


def reward_model(folder: Path, kind: str = "Mistral", *, labels: int = 1, template: str | None = ZEPHYR, head: str = "") -> RewardModel:
    import transformers

    tokens = byte_pairs([], 258)
    tokens.chat_template = template
    config = getattr(transformers, f"{kind}Config")(
        **{**SHAPE, "vocab_size": len(tokens), "num_labels": labels, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
    )
    torch.manual_seed(0)
    getattr(transformers, f"{kind}For{head or 'SequenceClassification'}")(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return RewardModel(weights=str(folder), dtype="float32")


DIALOGUES = [Case((Message("user", "Why? " * (number % 5 + 1)),), ("Because.", "So it is. " * (number + 1))) for number in range(12)]


def test_scores_are_the_models_own_whatever_they_are_batched_with(reward: RewardModel, bench: Bench) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    together = judged(reward, DIALOGUES, bench)
    alone = judged(replace(reward, tokens_per_batch=1), DIALOGUES, bench)
    model = AutoModelForSequenceClassification.from_pretrained(reward.weights).eval()
    tokens = AutoTokenizer.from_pretrained(reward.weights)
    for case, one, other in zip(DIALOGUES, together, alone, strict=True):
        assert isinstance(one, Judgement)
        assert isinstance(other, Judgement)
        texts = [f"<s><|user|>\n{case.dialogue[0].content}</s>\n<|assistant|>\n{text}</s>\n" for text in case.replies]
        with torch.no_grad():
            own = [model(**tokens(text, return_tensors="pt", add_special_tokens=False)).logits.item() for text in texts]
        assert one.scores == pytest.approx(own, abs=1e-5)
        assert other.scores == pytest.approx(own, abs=1e-5)
    assert len({score for one in together if isinstance(one, Judgement) for score in one.scores}) > 12


def test_batches_hold_rows_of_like_length_within_the_budget() -> None:
    lengths = [3, 9, 4, 30, 8, 3, 9]
    found = list(batches(lengths, 20))
    assert found == [[3], [1, 6], [4, 2], [0, 5]]
    assert sorted(number for batch in found for number in batch) == list(range(7))


def test_a_dialogue_beyond_its_positions_is_a_failure_and_not_cut(tmp_path: Path, bench: Bench) -> None:
    who = reward_model(tmp_path)
    first, second = judged(who, [Case(QUESTION, ("word " * 200,)), Case(QUESTION, ("word",))], bench)
    assert isinstance(first, Failure)
    assert first.reason.startswith("the dialogue with its reply is longer than the reward model's positions (")
    assert first.reason.endswith(" tokens of 512)")
    assert isinstance(second, Judgement)


def test_what_is_no_reward_model_is_a_problem(tmp_path: Path, bench: Bench) -> None:
    assert reward_model(tmp_path / "good").problems(CPU) == []
    wrong = {
        "has 2 labels": reward_model(tmp_path / "two", labels=2),
        "is a MistralForCausalLM; a reward model is": reward_model(tmp_path / "causal", head="CausalLM"),
        "has no chat template; write template": reward_model(tmp_path / "bare", template=None),
    }
    for said, who in wrong.items():
        (problem,) = who.problems(CPU)
        assert said in problem
        with pytest.raises(ZkitError):
            judged(who, DIALOGUES[:1], bench)
    assert "there is no such folder" in RewardModel(weights=str(tmp_path / "nowhere")).problems(CPU)[0]
    assert "switched off by HF_HUB_OFFLINE" in RewardModel(weights="owner/name").problems(CPU)[0]


def test_a_template_of_ones_own(tmp_path: Path, bench: Bench) -> None:
    bare = reward_model(tmp_path / "bare", template=None)
    file = tmp_path / "mine.jinja"
    file.write_text(ZEPHYR, "utf-8")
    who = replace(bare, template=str(file))
    assert who.problems(CPU) == []
    assert judged(who, DIALOGUES[:3], bench) == judged(reward_model(tmp_path / "good"), DIALOGUES[:3], bench)
    before = who.fingerprint()
    file.write_text(ZEPHYR + "\n", "utf-8")
    assert who.fingerprint() != before
    with pytest.raises(ValueError, match=r"should be a file ending in .jinja"):
        replace(who, template="zephyr")


class TestRewardModel(JudgeLaws):
    dialogue = QUESTION

    @pytest.fixture(autouse=True)
    def _weigh(self, reward: RewardModel, bench: Bench) -> None:
        self.judge = reward
        (found,) = judged(reward, [Case(QUESTION, ("Wood.", "A stone, I am told."))], bench)
        assert isinstance(found, Judgement)
        order = sorted(zip(found.scores, ("Wood.", "A stone, I am told."), strict=True), reverse=True)
        self.better, self.worse = (text for _, text in order)

    def test_judges_the_same_each_time(self, bench: Bench) -> None:
        """Within rounding: what a row is batched with decides how its sums are ordered."""
        case = Case(QUESTION, (self.better, self.worse))
        first, second = judged(self.judge, [case, case], bench)
        (again,) = judged(self.judge, [case], bench)
        assert isinstance(first, Judgement)
        for other in (second, again):
            assert isinstance(other, Judgement)
            assert other.scores == pytest.approx(first.scores, abs=1e-5)

"""Laws of judges."""

from __future__ import annotations

from collections.abc import Sequence

from zephyr_kit.example import Message
from zephyr_kit.protocols import Judge


class JudgeLaws:
    """What win rates and feedback rely on."""

    judge: Judge
    dialogue: Sequence[Message]
    better: str
    worse: str

    def test_prefers_the_better_reply_in_either_order(self) -> None:
        """A judge with a taste for the first reply is no judge."""
        first, second = self.judge.score(self.dialogue, [self.better, self.worse])
        assert first > second
        first, second = self.judge.score(self.dialogue, [self.worse, self.better])
        assert first < second

    def test_gives_a_score_to_each_reply(self) -> None:
        """One for one."""
        assert len(self.judge.score(self.dialogue, [self.better] * 3)) == 3

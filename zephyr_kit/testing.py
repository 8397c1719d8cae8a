"""Laws that plugins obey, as test classes to inherit from.

    class TestHinge(ObjectiveLaws):
        objective = Hinge(beta=0.5)

Each law says what the engine relies on. Run them with pytest.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from zephyr_kit import Unit
from zephyr_kit.batch import Batch, Tree, lay_out, visible
from zephyr_kit.config import plain
from zephyr_kit.example import BadRow, Example, Message, check
from zephyr_kit.protocols import Attention, Backend, DataSource, Judge, Objective, OptimizerFactory, Outcome, Policy, Scores, Start

CPU = torch.device("cpu")


def random_trees(count: int, completions: int, *, seed: int = 0, vocabulary: int = 50) -> list[Tree]:
    """Token trees with prompts and completions of uneven length, all trained."""
    draw = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return draw.integers(3, vocabulary, draw.integers(low, high)).astype(np.int32)

    trees = []
    for _ in range(count):
        texts = tuple(ids(1, 7) for _ in range(completions))
        trees.append(Tree(ids(1, 9), texts, tuple(np.ones(len(text), np.bool_) for text in texts)))
    return trees


def random_scores(trees: Sequence[Tree], *, seed: int, scale: float = 4.0, needs_gradient: bool = False) -> Scores:
    """Random log-probabilities for the completions of these trees, in float64."""
    batch = lay_out(trees)
    generator = torch.Generator().manual_seed(seed)
    logp_M = -torch.rand(len(batch.target_M), generator=generator, dtype=torch.float64) * scale
    return Scores(logp_M.requires_grad_(needs_gradient), batch.sequence_M, batch.num_sequences)


class ObjectiveLaws:
    """What the engine relies on when it packs, accumulates, and spreads examples over ranks."""

    objective: Objective

    def test_is_a_frozen_dataclass(self) -> None:
        """A preset's table is its constructor call, and nothing it learns may hide in it."""
        assert dataclasses.is_dataclass(type(self.objective))
        parameters: Any = vars(type(self.objective))["__dataclass_params__"]
        assert parameters.frozen

    def test_declares_what_it_compares(self) -> None:
        """The engine lays out so many completions, and divides by such units."""
        assert self.objective.completions >= 1
        assert isinstance(self.objective.unit, Unit)
        assert isinstance(self.objective.needs_reference, bool)

    def test_adds_up_over_examples(self) -> None:
        """loss(A and B) = loss(A) + loss(B), and likewise every metric: else micro-batches change the result."""
        policy, reference = self._scores(6)
        whole = self._call(policy, reference)
        parts = [self._call(self._only(policy, i), self._only(reference, i)) for i in range(6)]
        torch.testing.assert_close(whole.loss, torch.stack([part.loss for part in parts]).sum())
        for name, value in whole.metrics.items():
            torch.testing.assert_close(value, torch.stack([part.metrics[name] for part in parts]).sum())

    def test_does_not_look_at_the_order_of_examples(self) -> None:
        """Shuffling examples within a batch changes nothing."""
        policy, reference = self._scores(4)
        order = [2, 0, 3, 1]
        moved = self._call(self._join([self._only(policy, i) for i in order]), self._join([self._only(reference, i) for i in order]))
        torch.testing.assert_close(self._call(policy, reference).loss, moved.loss)

    def test_gradient_is_finite_and_not_zero(self) -> None:
        """There is something to learn, from every example."""
        policy, reference = self._scores(4)
        self._call(policy, reference).loss.backward()  # type: ignore[no-untyped-call]
        gradient = policy.logp_M.grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert all(gradient[policy.sequence_M // self.objective.completions == i].any() for i in range(4))

    def test_metrics_hold_no_graph(self) -> None:
        """A metric that holds the graph holds the memory of the whole step."""
        metrics = self._call(*self._scores(2)).metrics
        assert not any(value.requires_grad for value in metrics.values())
        assert all(value.ndim == 0 for value in metrics.values())

    def test_is_a_scalar_sum(self) -> None:
        """The loss is one number with a graph."""
        loss = self._call(*self._scores(2)).loss
        assert loss.ndim == 0
        assert loss.requires_grad

    def test_survives_extreme_scores(self) -> None:
        """Long completions of an untrained model have sums in the thousands."""
        policy, reference = self._scores(3, scale=1e4)
        loss = self._call(policy, reference).loss
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.isfinite()
        assert policy.logp_M.grad is not None
        assert policy.logp_M.grad.isfinite().all()

    def test_is_the_same_each_time(self) -> None:
        """Nothing hidden: the same scores give the same loss."""
        policy, reference = self._scores(3)
        assert torch.equal(self._call(policy, reference).loss, self._call(policy, reference).loss)

    def _scores(self, count: int, scale: float = 4.0) -> tuple[Scores, Scores]:
        trees = random_trees(count, self.objective.completions)
        return random_scores(trees, seed=0, scale=scale, needs_gradient=True), random_scores(trees, seed=1, scale=scale)

    def _only(self, whole: Scores, example: int) -> Scores:
        n = self.objective.completions
        mine = whole.sequence_M // n == example
        return Scores(whole.logp_M[mine], whole.sequence_M[mine] - example * n, n)

    def _join(self, parts: Sequence[Scores]) -> Scores:
        n = self.objective.completions
        numbers = torch.cat([part.sequence_M + i * n for i, part in enumerate(parts)])
        return Scores(torch.cat([part.logp_M for part in parts]), numbers, n * len(parts))

    def _call(self, policy: Scores, reference: Scores) -> Outcome:
        return self.objective(policy, reference if self.objective.needs_reference else None)


class AttentionLaws:
    """What a kernel for packed rows must equal: softmax attention under `visible`, forward and backward."""

    attention: Attention
    device: ClassVar[torch.device] = CPU
    dtype: ClassVar[torch.dtype] = torch.float32
    tolerance: ClassVar[float] = 2e-5
    heads: ClassVar[tuple[int, int]] = (4, 2)
    """Query heads, key-value heads."""
    size: ClassVar[int] = 8
    window: ClassVar[int | None] = None

    def test_equals_its_definition_on_repeated_prompts(self) -> None:
        """Rows of plain segments."""
        self._compare(lay_out(random_trees(5, 2), share_prompts=False))

    def test_equals_its_definition_on_shared_prompts(self) -> None:
        """Rows whose segments have parents."""
        self._compare(lay_out(random_trees(5, 3), share_prompts=True))

    def test_equals_its_definition_on_one_token(self) -> None:
        """The smallest row there is."""
        one = np.array([3], np.int32)
        self._compare(lay_out([Tree(one[:0], (one,), (np.ones(1, np.bool_),))]))

    def _compare(self, batch: Batch) -> None:
        assert not self.attention.problems(self.device)
        batch = batch.to(self.device)
        mine, theirs = self._run(batch, kernel=True), self._run(batch, kernel=False)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=self.tolerance, atol=self.tolerance)

    def _run(self, batch: Batch, *, kernel: bool) -> list[Tensor]:
        """The output, and the gradient of a random projection of it by query, key and value."""
        generator = torch.Generator().manual_seed(0)
        shapes = [(heads, len(batch.tokens_T), self.size) for heads in (self.heads[0], self.heads[1], self.heads[1])]
        query, key, value = (torch.randn(shape, generator=generator).to(self.device, self.dtype).requires_grad_() for shape in shapes)
        weight = torch.randn(shapes[0], generator=generator).to(self.device, self.dtype)
        scale = self.size**-0.5
        output = (
            self.attention.attend(query, key, value, batch, scale=scale, window=self.window, dropout=0.0)
            if kernel
            else self._definition(query, key, value, batch, scale)
        )
        (output * weight).sum().backward()  # type: ignore[no-untyped-call]
        return [output.detach(), *(x.grad for x in (query, key, value) if x.grad is not None)]

    def _definition(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, scale: float) -> Tensor:
        groups = self.heads[0] // self.heads[1]
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        scores = (query @ key.transpose(1, 2) * scale).masked_fill(~visible(batch, window=self.window), float("-inf"))
        return scores.softmax(-1) @ value


class DataSourceLaws:
    """What the corpus relies on: the same rows each time, and a fingerprint that stands for them."""

    source: DataSource

    def test_reads_the_same_rows_each_time(self) -> None:
        """An order that changes between two readings changes every run."""
        assert list(self.source.rows()) == list(self.source.rows())

    def test_has_a_fingerprint_that_stays(self) -> None:
        """It names the cached corpus."""
        assert self.source.fingerprint() == copy.deepcopy(self.source).fingerprint()

    def test_every_row_says_where_it_stood(self) -> None:
        """A bad row that cannot be found cannot be mended."""
        assert all(row.origin for row in self.source.rows())

    def test_has_no_problems_when_it_can_be_read(self) -> None:
        """The preflight may not cry wolf."""
        assert not self.source.problems()

    def test_rows_are_examples_or_bad_rows(self) -> None:
        """And good rows pass the door."""
        for row in self.source.rows():
            assert isinstance(row, (Example, BadRow))
            if isinstance(row, Example):
                check(row)

    def test_miniature_has_rows_of_the_same_kind(self, tmp_path: Path) -> None:
        """`--smoke` trains on it, offline, with as many completions."""
        wanted = {len(row.completions) for row in self.source.rows() if isinstance(row, Example)}
        got = {len(row.completions) for row in self.source.miniature(tmp_path).rows() if isinstance(row, Example)}
        assert got == wanted


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


class OptimizerLaws:
    """What resuming relies on: all of the optimizer's state is in its state_dict."""

    factory: OptimizerFactory

    def test_minimises(self) -> None:
        """A parabola has a lowest point."""
        parameter, optimizer = self._fresh()
        for _ in range(20):
            self._step(parameter, optimizer)
        assert float(parameter.detach().norm()) < 64

    def test_goes_on_to_the_bit_from_its_state(self) -> None:
        """Two steps, a copy through its state, two more: the same bits."""
        parameter, optimizer = self._fresh()
        for _ in range(2):
            self._step(parameter, optimizer)
        state = pickle.loads(pickle.dumps(optimizer.state_dict()))  # noqa: S301  our own bytes
        other, again = self._fresh()
        with torch.no_grad():
            other.copy_(parameter)
        again.load_state_dict(state)
        for _ in range(2):
            self._step(parameter, optimizer)
            self._step(other, again)
        assert torch.equal(parameter, other)

    def _fresh(self) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.ones(64, 64))
        return parameter, self.factory.build([parameter], learning_rate=1e-2)

    def _step(self, parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        parameter.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


class BackendLaws:
    """What the engine relies on when it packs rows, shares prompts, and asks for the reference."""

    backend: Backend
    device: ClassVar[torch.device] = CPU
    tolerance: ClassVar[float] = 2e-4
    dialogue: ClassVar[tuple[Message, ...]] = (Message("user", "a b c?"),)
    replies: ClassVar[tuple[str, ...]] = ("d e f.", "g h.", "i j k l m n.")

    def test_a_pack_leaks_nothing(self) -> None:
        """An example scores the same alone and among others."""
        policy, trees = self._policy(), self._trees()
        together = self._sums(policy, trees)
        alone = torch.cat([self._sums(policy, [tree]) for tree in trees])
        torch.testing.assert_close(together, alone, rtol=self.tolerance, atol=self.tolerance)

    def test_shared_prompts_score_as_repeated_ones(self) -> None:
        """Writing a prompt once is schedule, not mathematics."""
        policy, trees = self._policy(), self._trees()
        shared, repeated = self._sums(policy, trees), self._sums(policy, trees, share_prompts=False)
        torch.testing.assert_close(shared, repeated, rtol=self.tolerance, atol=self.tolerance)

    def test_scores_are_log_probabilities_in_float32_or_better(self) -> None:
        """Sums over thousands of tokens need it."""
        logp_M = self._policy().score(lay_out(self._trees()).to(self.device))
        assert logp_M.dtype in (torch.float32, torch.float64)
        assert (logp_M <= 0).all()

    def test_the_reference_is_where_the_stage_began(self) -> None:
        """Before the first step policy and reference agree; after one, only the policy has moved."""
        policy, trees = self._policy(), self._trees()
        policy.keep_reference()
        before = self._sums(policy, trees)
        torch.testing.assert_close(self._reference_sums(policy, trees), before, rtol=self.tolerance, atol=self.tolerance)
        self._move(policy)
        assert not torch.allclose(self._sums(policy, trees), before, rtol=self.tolerance, atol=self.tolerance)
        torch.testing.assert_close(self._reference_sums(policy, trees), before, rtol=self.tolerance, atol=self.tolerance)

    def test_restores_itself_after_the_reference_also_when_an_exception_passes(self) -> None:
        """Else a failed batch trains the wrong model ever after."""
        policy, trees = self._policy(), self._trees()
        policy.keep_reference()
        self._move(policy)
        trained = [name for name, p in policy.module.named_parameters() if p.requires_grad]
        before = self._sums(policy, trees)
        for error in (None, RuntimeError("on purpose")):
            try:
                with policy.reference():
                    if error:
                        raise error
            except RuntimeError:
                pass
            assert torch.equal(self._sums(policy, trees), before)
            assert [name for name, p in policy.module.named_parameters() if p.requires_grad] == trained

    def test_scores_the_same_after_save_and_load(self, tmp_path: Path) -> None:
        """The folder that users get is the model that was measured."""
        policy, trees = self._policy(), self._trees()
        self._move(policy)
        policy.save(tmp_path / "saved")
        again = self.backend.load(self.device, start=Start(tmp_path / "saved"), train=False)
        torch.testing.assert_close(self._sums(again, trees), self._sums(policy, trees), rtol=10 * self.tolerance, atol=10 * self.tolerance)

    def test_training_mode_survives_the_reference(self) -> None:
        """Dropout that stays off after the first batch is no dropout."""
        policy = self._policy()
        policy.keep_reference()
        policy.module.train()
        with policy.reference():
            assert not policy.module.training
        assert policy.module.training

    def test_loads_the_same_each_time(self) -> None:
        """Weights that start at random start from the seed."""
        trees = self._trees()
        assert torch.equal(self._sums(self._policy(), trees), self._sums(self._policy(), trees))

    def test_the_tokenizer_can_be_pickled(self) -> None:
        """Worker processes tokenise."""
        tokenizer = self.backend.tokenizer(Start())
        again = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301  our own bytes
        assert again.fingerprint() == tokenizer.fingerprint()

    def test_has_a_fingerprint_of_plain_values(self) -> None:
        """It is part of the stage's key."""
        assert plain(self.backend.fingerprint()) == plain(copy.deepcopy(self.backend).fingerprint())

    def _policy(self) -> Policy:
        policy = self.backend.load(self.device, start=Start(seed=1), train=True)
        policy.module.eval()
        return policy

    def _trees(self) -> list[Tree]:
        tokenizer = self.backend.tokenizer(Start())
        completions = tuple((Message("assistant", reply),) for reply in self.replies)
        longer = (*self.dialogue, Message("assistant", "o p."), Message("user", "q?"))
        return [tokenizer.encode(Example(prompt, completions)) for prompt in (self.dialogue, longer)]

    def _sums(self, policy: Policy, trees: Sequence[Tree], *, share_prompts: bool = True) -> Tensor:
        batch = lay_out(trees, share_prompts=share_prompts).to(self.device)
        with torch.no_grad():
            return Scores(policy.score(batch), batch.sequence_M, batch.num_sequences).sums()

    def _reference_sums(self, policy: Policy, trees: Sequence[Tree]) -> Tensor:
        with policy.reference():
            return self._sums(policy, trees)

    def _move(self, policy: Policy) -> None:
        """Change every trained parameter."""
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in _trained(policy):
                parameter.add_(torch.randn_like(parameter) * 0.3)


def _trained(policy: Policy) -> Iterator[Any]:
    return (parameter for parameter in policy.module.parameters() if parameter.requires_grad)

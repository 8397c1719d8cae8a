"""Laws of backends."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import torch
from torch import Tensor

from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.config import plain
from zephyr_kit.example import Example, Message
from zephyr_kit.protocols import PolicyWithDistributions, Start
from zephyr_kit.testing.laws import DoesNotApply
from zephyr_kit.testing.loaded import LoadedLaws


class BackendLaws(LoadedLaws):
    """What the engine relies on when it packs rows, shares prompts, and asks for the reference."""

    subject = "backend"
    title = "Backends"

    def test_its_tokenizer_takes_any_dialogue(self) -> None:
        """Whatever can be written becomes tokens: of every completion, some to be trained.

        Without it, an hour of tokenising ends in an error, or in rows that teach nothing.
        """

        def holds(trees: list[Tree]) -> None:
            assert all(flags.any() for tree in trees for flags in tree.trained), "a completion has no token to be trained"

        self._for_any_dialogues(holds, cases=20)

    def test_a_pack_leaks_nothing(self) -> None:
        """An example scores the same alone and among others in its row.

        Without it, what an example teaches depends on which others were packed beside it.
        """
        policy = self._policy()

        def holds(trees: list[Tree]) -> None:
            alone = torch.cat([self._sums(policy, [tree]) for tree in trees])
            self.same(self._sums(policy, trees), alone, rtol=self.tolerance, atol=self.tolerance)

        self._for_any_dialogues(holds)

    def test_a_pack_trains_as_its_examples_do(self) -> None:
        """The gradient of a row is the sum of those of its examples, each alone.

        Without it, scores are right and training is not, which nothing shows.
        """
        policy, trees = self._policy(), self._trees()
        together, alone = self._gradient(policy, trees), sum(self._gradient(policy, [tree]) for tree in trees)
        assert isinstance(alone, Tensor)
        unit = alone.abs().max()
        assert unit, "no trained parameter has a gradient"
        self.same(together / unit, alone / unit, rtol=0, atol=10 * self.tolerance)

    def test_shared_prompts_score_as_repeated_ones(self) -> None:
        """A prompt that is written once for several completions scores them as prompts of their own would.

        Without it, sharing prompts, which the engine does by itself, trains another model.
        """
        if not self._shares:
            raise DoesNotApply("it says `shares_prompts = False`")
        policy = self._policy()

        def holds(trees: list[Tree]) -> None:
            shared, repeated = self._sums(policy, trees), self._sums(policy, trees, share_prompts=False)
            self.same(shared, repeated, rtol=self.tolerance, atol=self.tolerance)

        self._for_any_dialogues(holds)

    def test_scores_are_log_probabilities_in_float32_or_better(self) -> None:
        """Scores are log-probabilities, at most 0, in float32 or better.

        Without it, the sums of long completions are rounded to a few digits, and a preference is noise.
        """
        logp_M = self._policy().score(lay_out(self._trees(), share_prompts=self._shares).to(self.device))
        assert logp_M.dtype in (torch.float32, torch.float64)
        assert (logp_M <= 0).all()

    def test_distributions_hold_the_scores(self) -> None:
        """What a model says of every token is what it says of the target, and adds up to one.

        Without it, `zkit export` compares what it wrote with something other than what was trained.
        """
        policy, batch = self._policy(), lay_out(self._trees(), share_prompts=self._shares).to(self.device)
        if not isinstance(policy, PolicyWithDistributions):
            raise DoesNotApply("its policy has no `distributions`")
        with torch.no_grad():
            logp_MV, logp_M = policy.distributions(batch), policy.score(batch)
        found_M, whole_M = logp_MV.gather(1, batch.target_M[:, None])[:, 0], logp_MV.exp().sum(1)
        self.same(found_M, logp_M.to(logp_MV.dtype), rtol=self.tolerance, atol=self.tolerance)
        self.same(whole_M, torch.ones_like(whole_M), rtol=self.tolerance, atol=self.tolerance)

    def test_the_reference_is_where_the_stage_began(self) -> None:
        """Before the first step policy and reference agree; after one, only the policy has moved.

        Without it, an objective that compares the two measures from a place that moves.
        """
        policy, trees = self._policy(), self._trees()
        policy.keep_reference()
        before = self._sums(policy, trees)
        self.same(self._reference_sums(policy, trees), before, rtol=self.tolerance, atol=self.tolerance)
        self._move(policy)
        assert not torch.allclose(self._sums(policy, trees), before, rtol=self.tolerance, atol=self.tolerance)
        self.same(self._reference_sums(policy, trees), before, rtol=self.tolerance, atol=self.tolerance)

    def test_restores_itself_after_the_reference_also_when_an_exception_passes(self) -> None:
        """After the reference it is the policy again, also when an exception passes.

        Without it, a batch that fails leaves the wrong model to be trained ever after.
        """
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
        """What is saved scores as what was trained.

        Without it, the folder that users get is not the model that was measured.
        """
        policy, trees = self._policy(), self._trees()
        self._move(policy)
        policy.save(tmp_path / "saved")
        again = self.backend.load(self.device, start=Start(tmp_path / "saved"), train=False)
        self.same(self._sums(again, trees), self._sums(policy, trees), rtol=10 * self.tolerance, atol=10 * self.tolerance)

    def test_training_mode_survives_the_reference(self) -> None:
        """Training mode is what it was after the reference.

        Without it, dropout stays off after the first batch.
        """
        policy = self._policy()
        policy.keep_reference()
        policy.module.train()
        with policy.reference():
            assert not policy.module.training
        assert policy.module.training

    def test_loads_the_same_each_time(self) -> None:
        """Loading twice gives the same scores to the bit: what starts at random starts from the seed.

        Without it, a run cannot be repeated.
        """
        trees = self._trees()
        assert torch.equal(self._sums(self._policy(), trees), self._sums(self._policy(), trees))

    def test_the_tokenizer_can_be_pickled(self) -> None:
        """The tokenizer can be pickled, and stays the same.

        Without it, worker processes cannot tokenise, and large data takes hours.
        """
        tokenizer = self.backend.tokenizer(Start())
        again = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301  our own bytes
        assert again.fingerprint() == tokenizer.fingerprint()

    def test_answers_every_request_once(self) -> None:
        """Every request is answered once, and training goes on after it as before.

        Without it, prompts lose their replies, or a model that has spoken trains otherwise.
        """
        policy, trees = self._policy(), self._trees()
        policy.module.train()
        requests = self._requests()
        found = list(policy.generate(requests))
        assert sorted(number for number, _ in found) == list(range(len(requests)))
        assert policy.module.training
        policy.module.eval()
        assert torch.equal(self._sums(policy, trees), self._sums(self._policy(), trees))

    def test_a_reply_depends_on_its_own_request_alone(self) -> None:
        """A reply depends on its own request, seed and all, and not on those beside it.

        Without it, replies that are kept and asked for again, one by one, would be others.
        """
        policy, requests = self._policy(), self._requests()
        replies, other_order = dict(policy.generate(requests)), dict(policy.generate(requests[::-1]))
        last = len(requests) - 1
        assert [replies[number] for number in range(last + 1)] == [other_order[last - number] for number in range(last + 1)]

    def test_has_a_fingerprint_of_plain_values(self) -> None:
        """Its fingerprint is made of plain values, and stays.

        Without it, every start of a run looks like a change of the model, and trains anew.
        """
        assert plain(self.backend.fingerprint()) == plain(copy.deepcopy(self.backend).fingerprint())

    def test_reference_scores_are_kept_by_content(self, tmp_path: Path) -> None:
        """The same weights elsewhere have the same fingerprint of scores; other weights, another.

        Without it, reference scores are made again for nothing, or taken from another model.
        """
        policy = self._policy()
        policy.save(tmp_path / "one")
        shutil.copytree(tmp_path / "one", tmp_path / "same")
        self._move(policy)
        policy.save(tmp_path / "other")
        one, same, other = (self._scores_fingerprint(Start(tmp_path / name)) for name in ("one", "same", "other"))
        assert one == same
        assert one != other

    def test_seeds_with_one_fingerprint_score_alike(self) -> None:
        """Seeds with one fingerprint of scores score alike.

        Without it, a run takes the reference scores of a model that started elsewhere.
        """
        trees = self._trees()
        starts = [Start(seed=seed) for seed in (1, 2)]
        if len({self._scores_fingerprint(start) for start in starts}) == 1:
            one, other = (self._sums(self._policy(start), trees) for start in starts)
            assert torch.equal(one, other)

    def test_has_no_problems_where_it_loads(self) -> None:
        """`problems` is empty where the model can be loaded.

        Without it, the preflight refuses presets that would have run.
        """
        assert not self.backend.problems(self.device, start=Start()), self.backend.problems(self.device, start=Start())

    def test_its_skeleton_has_the_shape_of_the_model(self) -> None:
        """The skeleton has the parameters of the model, by name and shape, and no data.

        Without it, `zkit plan` foretells the memory of another model, and refuses what fits or lets begin what does not.
        """
        with torch.device("meta"):
            skeleton = self.backend.skeleton(Start(seed=1)).policy.module
        there, made = ({name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
                       for module in (skeleton, self._policy().module))
        assert there == made
        assert all(p.is_meta for p in skeleton.parameters())

    def test_miniature_is_the_same_kind_of_model(self, tmp_path: Path) -> None:
        """The miniature loads offline, and scores.

        Without it, `--smoke` cannot try a preset before the real weights are paid for.
        """
        small = self.backend.miniature(tmp_path)
        assert type(small) is type(self.backend)
        policy = small.load(self.device, start=Start(seed=1), train=True)
        tree = small.tokenizer(Start()).encode(Example(self.dialogue, ((Message("assistant", self.replies[0]),),)))
        assert torch.isfinite(self._sums(policy, [tree])).all()

    def _scores_fingerprint(self, start: Start) -> str:
        return json.dumps(plain(self.backend.scores_fingerprint(start)), sort_keys=True)

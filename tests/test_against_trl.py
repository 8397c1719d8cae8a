"""The same losses and the same weights as trl 1.16 and peft, on real data: our whole path against theirs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.trl_runs import Recipe, Run, trl_dpo, trl_sft
from packaging.version import Version
from references import scored
from torch import Tensor
from zkit_mistral.backend import Lora, Mistral
from zkit_mistral.quiet import quiet
from zkit_optimizers.adamw import AdamW
from zkit_preference.dpo import Dpo
from zkit_preference.ipo import Ipo
from zkit_sft.objective import Sft
from zkit_sources.files import Jsonl

from zephyr_kit.batch import Tree
from zephyr_kit.corpus import Corpus, Door, prepare
from zephyr_kit.engine import Totals, Trainer
from zephyr_kit.feed import Feed
from zephyr_kit.plan import Plan
from zephyr_kit.plugins import Plugins
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import Attention, Objective, Policy, Start
from zephyr_kit.schedule import learning_rate
from zephyr_kit.world import World

CPU = torch.device("cpu")
STEPS = 20
TOLERANCE = 1e-4
RATE = 5e-4


@dataclass(frozen=True)
class Case:
    """What is trained, on what, and how."""

    objective: Objective
    data: str
    plan: dict[str, Any]
    max_length: int = 256
    share_prompts: bool = True
    live: bool = False
    capacity: int = 512


def model(shared: Path, lora: Lora | None = None, dtype: str = "float32") -> Mistral:
    attention = Plugins().offered(Attention)["segments"]()
    return Mistral(weights=str(shared / "models/stories260k"), dtype=dtype, template="zephyr", lora=lora, attention=attention)


def corpus_of(shared: Path, cache: Path, case: Case) -> Corpus:
    source = Jsonl(str(shared / f"data/{case.data}.jsonl.gz"))
    tokenizer = model(shared).tokenizer(Start())
    door = Door(case.objective.completions, case.max_length, "cut")
    return prepare([Portion(source, limit=400)], tokenizer, door, cache=cache)


def plan_of(corpus: Corpus, case: Case) -> Plan:
    return Plan(corpus.lengths, seed=7, epochs=None, steps=STEPS, **case.plan)


def ours(shared: Path, cache: Path, case: Case, backend: Mistral) -> tuple[list[Totals], Policy]:
    """Sources, tokenizer, corpus, plan, feed, trainer: what `zkit run` does."""
    corpus = corpus_of(shared, cache, case)
    plan = plan_of(corpus, case)
    policy = backend.load(CPU, start=Start(seed=7), train=True)
    reference = None
    if case.objective.needs_reference and case.live:
        policy.keep_reference()
    elif case.objective.needs_reference:
        reference = scored(policy, corpus, cache / "references", scorer=str(id(policy)), share_prompts=case.share_prompts)
    trainer = Trainer(
        policy,
        case.objective,
        optimizer=partial(AdamW().build, learning_rate=RATE),
        learning_rate=lambda step: learning_rate(step, peak=RATE, schedule="cosine", warmup=0.1, num_steps=STEPS),
        seed=7,
    )
    feed = Feed(corpus, case.objective, case.capacity, case.share_prompts, CPU, World(), reference)
    return [trainer.step(work) for work in feed.steps(plan, first=0)], policy


def in_order(shared: Path, cache: Path, case: Case) -> tuple[list[Tree], tuple[int, ...]]:
    """The trees in the order of our plan, and how many make each step."""
    corpus = corpus_of(shared, cache, case)
    plan = plan_of(corpus, case)
    steps = [plan.step(number) for number in range(plan.num_steps)]
    return [corpus[i] for step in steps for i in step], tuple(map(len, steps))


def recipe(sizes: tuple[int, ...]) -> Recipe:
    return Recipe(learning_rate=RATE, num_steps=STEPS, batch_size=sizes, schedule="cosine", warmup_ratio=0.1)


def theirs(shared: Path, cache: Path, case: Case) -> Run:
    trees, sizes = in_order(shared, cache, case)
    place = shared / "models/stories260k"
    match case.objective:
        case Sft():
            return trl_sft(place, trees, recipe(sizes))
        case Dpo(beta=beta):
            return trl_dpo(place, trees, recipe(sizes), loss_type="sigmoid", beta=beta)
        case Ipo(tau=tau):
            return trl_dpo(place, trees, recipe(sizes), loss_type="ipo", beta=tau)
    raise NotImplementedError


def apart(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / abs(theirs)


def weights_apart(policy: Policy, state: dict[str, Tensor]) -> float:
    """The largest difference of a weight, relative to the largest weight of its tensor."""
    own = {name.removeprefix("model."): p.detach() for name, p in policy.module.named_parameters()}
    assert set(own) <= set(state)
    return max(float((value - state[name]).abs().max() / state[name].abs().max()) for name, value in own.items())


BY_EXAMPLES, BY_TOKENS = {"examples_per_step": 4}, {"tokens_per_step": 900}


@pytest.mark.slow
@pytest.mark.skipif(Version(version("trl")) < Version("1.16"), reason="before, trl's head is in Triton alone, and this is a CPU")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(Sft(), "chat_sgd", BY_EXAMPLES), id="sft"),
        pytest.param(Case(Sft(), "chat_sgd", BY_TOKENS), id="sft-by-tokens"),
        pytest.param(Case(Dpo(), "preference_pandalm", BY_EXAMPLES), id="dpo"),
        pytest.param(Case(Dpo(), "preference_pandalm", BY_EXAMPLES, live=True, share_prompts=False), id="dpo-live-repeated"),
        pytest.param(Case(Ipo(), "preference_pandalm", BY_EXAMPLES), id="ipo"),
    ],
)
def test_every_loss_and_the_weights_agree(shared: Path, tmp_path: Path, case: Case) -> None:
    expected = theirs(shared, tmp_path, case)
    steps, policy = ours(shared, tmp_path, case, model(shared))
    assert len(steps) == len(expected.losses) == STEPS
    losses = [apart(float(step.means["loss"]), loss) for step, loss in zip(steps, expected.losses, strict=True)]
    norms = [apart(float(step.gradient_norm), norm) for step, norm in zip(steps, expected.grad_norms, strict=True)]
    weights = weights_apart(policy, dict(expected.state))
    print(f"largest relative difference: loss {max(losses):.1e}, gradient norm {max(norms):.1e}, weights {weights:.1e}")  # noqa: T201  shown by pytest -rP
    assert max(losses) < TOLERANCE
    assert max(norms) < 10 * TOLERANCE
    assert weights < TOLERANCE
    assert [step.learning_rate for step in steps] == pytest.approx(expected.learning_rates, rel=1e-9)
    assert float(steps[-1].means["loss"]) != float(steps[0].means["loss"])


def test_adapters_learn_as_with_peft_alone(shared: Path, tmp_path: Path) -> None:
    """The same LoRA on transformers' own model, with labels of -100 and its own loss, in a plain loop."""
    case = Case(Sft(), "chat_sgd", BY_EXAMPLES, max_length=128)
    policy = model(shared, Lora(rank=4, alpha=8), "float64").load(CPU, start=Start(seed=7), train=True)
    plain = peft_alone(shared, policy)
    trees, _ = in_order(shared, tmp_path, case)
    corpus = corpus_of(shared, tmp_path, case)
    feed = Feed(corpus, case.objective, case.capacity, True, CPU, World())
    # With a larger epsilon, since Adam makes whole steps of gradients that are nothing but rounding: transformers' loss is float32.
    adamw = partial(AdamW(epsilon=1e-5).build, learning_rate=RATE)
    trainer = Trainer(policy, case.objective, optimizer=adamw, learning_rate=lambda _: RATE, seed=7)
    trained = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, eps=1e-5, weight_decay=0.0)
    for number in range(5):
        loss = label_loss(plain, trees[4 * number : 4 * number + 4])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step = trainer.step(feed.step(plan_of(corpus, case).step(number)))
        assert float(step.means["loss"]) == pytest.approx(loss.item(), rel=1e-5)
        assert float(step.gradient_norm) == pytest.approx(norm.item(), rel=1e-4)
    own = {name.removeprefix("model."): p.detach() for name, p in policy.module.named_parameters() if p.requires_grad}
    ones = {name: p.detach() for name, p in plain.named_parameters() if p.requires_grad}
    assert own.keys() == ones.keys()
    assert all("lora_" in name for name in own)
    for name, value in own.items():
        torch.testing.assert_close(value, ones[name], rtol=TOLERANCE, atol=1e-6)


def peft_alone(shared: Path, policy: Policy) -> Any:
    """transformers' model under peft, with the adapter of `policy`, moved off its start."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with quiet():
        bare = AutoModelForCausalLM.from_pretrained(shared / "models/stories260k", dtype=torch.float64, attn_implementation="eager")
        plain = get_peft_model(bare, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")).double()
    torch.manual_seed(1)
    values = {name: 0.05 * torch.randn_like(p) for name, p in plain.named_parameters() if p.requires_grad}
    for named, prefix in ((plain.named_parameters(), ""), (policy.module.named_parameters(), "model.")):
        for name, parameter in named:
            if parameter.requires_grad:
                parameter.data.copy_(values[name.removeprefix(prefix)])
    return plain


def label_loss(plain: Any, trees: list[Tree]) -> Tensor:
    """Mean over the trained tokens, by transformers' labels, a row at a time."""
    total, count = torch.zeros(()), 0
    for tree in trees:
        ids = torch.from_numpy(np.concatenate([tree.prompt, tree.completions[0]]).astype(np.int64))[None]
        trained = torch.from_numpy(np.concatenate([np.zeros(len(tree.prompt), bool), tree.trained[0]]))[None]
        number = int(trained[:, 1:].sum())
        total = total + plain(input_ids=ids, labels=ids.masked_fill(~trained, -100)).loss * number
        count += number
    return total / count

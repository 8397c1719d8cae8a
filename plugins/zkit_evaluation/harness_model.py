"""A loaded policy as lm_eval asks models: log-likelihoods by `score`, text by `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval import simple_evaluate, utils
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from zephyr_kit import ZkitError
from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.example import TEXT, Message
from zephyr_kit.protocols import Policy, Request, Sampling
from zephyr_kit.template_process import writer_for

if TYPE_CHECKING:
    from zephyr_kit.subjects import Subject
    from zkit_evaluation.harness import Benchmark, LmEval

TOKENS_PER_BATCH = 8192
MAX_LENGTH = 2048
"""Of a model that does not say how many positions it has: lm_eval's own."""
MAX_NEW_TOKENS = 256
"""Of a task that does not say: lm_eval's own."""

Wanted = tuple[Any, list[int], list[int]]
"""The texts, under which lm_eval keeps the answer, and the ids of context and continuation."""


@dataclass(frozen=True)
class Asking:
    """lm_eval's tasks, and how they are asked."""

    tasks: Tasks
    settings: LmEval

    @classmethod
    def of(cls, names: Sequence[str], include: str | None, settings: LmEval) -> Asking:
        """Read the folder alone where it has all, for lm_eval's own tasks take long to list."""
        if include is not None:
            alone = Tasks(include_path=str(Path(include).expanduser()), include_defaults=False)
            if set(names) <= set(alone.all_tasks):
                return cls(alone, settings)
        return cls(Tasks(include_path=include and str(Path(include).expanduser())), settings)

    @property
    def names(self) -> list[str]:
        """Of all tasks and groups."""
        return list(self.tasks.all_tasks)

    def knows(self, name: str) -> bool:
        """Whether there is such a task."""
        return name in self.tasks.all_tasks

    def results(self, subject: Subject, benchmarks: Mapping[str, Benchmark], kept: Path) -> dict[str, Any]:
        """What lm_eval finds of each, by task and metric; answers are kept in a file of `kept` under the model's content."""
        tokens = getattr(subject.tokenizer, "tokens", None)
        if tokens is None:
            raise ZkitError("suite lm-eval: needs a model whose tokenizer is one of transformers (its backend's has no `tokens`)")
        share = bool(getattr(subject.backend, "shares_prompts", True))
        with subject() as policy:
            model = PolicyLM(policy, tokens, self.tasks, max_length=subject.max_length or MAX_LENGTH, shares_prompts=share)
            return {name: self._result(model, benchmark, kept / subject.content) for name, benchmark in benchmarks.items()}

    def _result(self, model: PolicyLM, benchmark: Benchmark, kept: Path) -> dict[str, Any]:
        settings = self.settings
        own = None if benchmark.fewshot < 0 else benchmark.fewshot
        tasks = self.tasks.read(benchmark.task)
        # Answers without that word are no answers to a task that looks at it, though the request be the same.
        file = kept.with_name(f"{kept.name}-likeliest") if self.tasks.asks_for_likeliest() else kept
        found: Any = simple_evaluate(
            model=model,
            tasks=tasks,
            num_fewshot=own if settings.fewshot is None else settings.fewshot,
            limit=settings.limit,
            apply_chat_template=settings.chat,
            log_samples=False,
            task_manager=self.tasks,
            fewshot_random_seed=settings.seed,
            use_cache=str(file),
        )
        results: dict[str, Any] = found["results"]
        return results


class Tasks(TaskManager):  # type: ignore[misc]
    """lm_eval's tasks; it remembers those that were loaded last."""

    def load(self, *arguments: Any, **keys: Any) -> Any:
        """See lm_eval."""
        self.loaded: Any = super().load(*arguments, **keys)
        return self.loaded

    def read(self, name: str) -> list[Any]:
        """A task, a group of them, or all of a tag, loaded."""
        found = self.load([name])
        return [found["groups"][name]] if name in found["groups"] else list(found["tasks"].values())

    def asks_for_likeliest(self) -> bool:
        """Whether a task that was loaded looks at whether a continuation is the likeliest one."""
        tasks = self.loaded["tasks"].values()
        return any(task.OUTPUT_TYPE == "loglikelihood" or "exact_match" in getattr(task, "_metric_fn_list", {}) for task in tasks)


class PolicyLM(TemplateLM):  # type: ignore[misc]
    """A policy of ours; ids and windows are those that lm_eval's own `hf` makes."""

    def __init__(self, policy: Policy, tokens: Any, tasks: Tasks, *, max_length: int, shares_prompts: bool) -> None:
        super().__init__()
        self.policy, self.tokenizer, self.tasks = policy, tokens, tasks
        self.max_length, self.shares_prompts = max_length, shares_prompts
        self._device = next(policy.module.parameters()).device
        self._dialogues: dict[str, tuple[Message, ...]] = {}
        """By what the chat template has made of them."""

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        begins = self.tokenizer.bos_token_id
        return self.eot_token_id if begins is None else int(begins)

    @property
    def tokenizer_name(self) -> str:
        """For lm_eval's records."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: FBT001  lm_eval's
        """Ids, with the tokens that the tokenizer adds by itself, unless they stand there already."""
        begins = self.tokenizer.decode([self.prefix_token_id])
        if add_special_tokens is None and begins and string.startswith(begins):
            add_special_tokens = False
        added = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer.encode(string, **added)
        return ids

    def _loglikelihood_tokens(self, requests: Sequence[Wanted], **_: Any) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation; those of one context are computed together, and the context once."""
        by_context: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            # What a model of so many positions sees of it: the last token is only foretold.
            ids = [*context, *continuation][-(self.max_length + 1) :]
            size = len(continuation)
            if size >= len(ids):
                raise ZkitError(f"suite lm-eval: a continuation has {size:,} tokens, and the model {self.max_length:,} positions")
            by_context.setdefault(tuple(ids[:-size]), []).append((number, ids[-size:]))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for number, answer in self._scored(by_context):
            found[number] = answer
            if requests[number][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[number][0], answer)
        return found

    @torch.no_grad()
    def _scored(self, by_context: Mapping[tuple[int, ...], Sequence[tuple[int, list[int]]]]) -> Iterator[tuple[int, tuple[float, bool]]]:
        trees = [_tree(context, [ids for _, ids in asked]) for context, asked in by_context.items()]
        numbers = [[number for number, _ in asked] for asked in by_context.values()]
        order = sorted(range(len(trees)), key=lambda index: -trees[index].num_tokens)
        for members in _batches(order, [tree.row_length(share_prompts=self.shares_prompts) for tree in trees]):
            batch = lay_out([trees[index] for index in members], share_prompts=self.shares_prompts).to(self._device)
            sums_N = torch.zeros(batch.num_sequences, dtype=torch.float64)
            sums_N.index_add_(0, batch.sequence_M.cpu(), self.policy.score(batch).double().cpu())
            likeliest = self._likeliest(batch)
            asked = [number for index in members for number in numbers[index]]
            for place, number in enumerate(asked):
                yield number, (float(sums_N[place]), likeliest[place])

    def _likeliest(self, batch: Any) -> list[bool]:
        """Whether each continuation is what the model would write; asked only where a task looks at it, for it takes another pass."""
        if not self.tasks.asks_for_likeliest():
            return [False] * int(batch.num_sequences)
        if not hasattr(self.policy, "likeliest"):
            raise ZkitError("suite lm-eval: the task asks which token is the likeliest, and this backend's policy has no `likeliest`")
        missed_N = torch.zeros(batch.num_sequences).index_add_(0, batch.sequence_M.cpu(), (~self.policy.likeliest(batch)).float().cpu())
        return [bool(missed == 0) for missed in missed_N]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: FBT001, FBT002
        """The log-likelihood of each text, in windows of as many positions as the model has, each token foretold once."""
        found = []
        for request in requests:
            (text,) = request.args
            ids = self.tok_encode(text)
            windows = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            wanted = [(None, *utils.make_disjoint_window(window)) for window in windows]
            found.append(sum(logp for logp, _ in self._loglikelihood_tokens(wanted)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: FBT001, FBT002
        """What the policy writes after each text, up to the first of the words that end it."""
        asked = [self._request(*request.args) for request in requests]
        found = [""] * len(requests)
        for number, reply in self.policy.generate(asked):
            text, keys = requests[number].args
            found[number] = _until(reply.text, keys.get("until") or [])
            self.cache_hook.add_partial("generate_until", (text, keys), found[number])
        return found

    def _request(self, text: str, keys: Mapping[str, Any]) -> Request:
        """A text that leaves too little room is cut from the left, as lm_eval's `hf` does; a dialogue is not."""
        sampling = _sampling(keys)
        room = self.max_length - sampling.max_new_tokens
        if room < 1:
            told = f"{sampling.max_new_tokens:,} tokens are to be written, and the model has {self.max_length:,} positions"
            raise ZkitError(f"suite lm-eval: {told}")
        if text in self._dialogues:  # as plain text, the template's own control tokens would be taken for forged ones
            return Request(self._dialogues[text], sampling)
        return Request((Message(TEXT, self._last(text, room)),), sampling)

    def _last(self, text: str, room: int) -> str:
        """The end of a text that so many tokens have room for, those that the tokenizer adds by itself among them."""
        encode = self.tokenizer.backend_tokenizer.encode
        while (over := len((encoding := encode(text)).ids) - room) > 0:
            begins = [first for first, end in encoding.offsets if end > first]
            if over >= len(begins):
                return ""
            text = text[max(1, begins[over]) :]  # what is left may be other tokens, and more of them
        return text

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:  # noqa: FBT001, FBT002
        """A dialogue as the model's template writes it, in a process that holds it within limits."""
        writer = writer_for(self.tokenizer.chat_template, self.tokenizer.special_tokens_map, ours=False)
        (text,) = writer.write(chat_history, [(len(chat_history), add_generation_prompt)])
        if add_generation_prompt:
            self._dialogues[text] = tuple(Message(turn["role"], turn["content"]) for turn in chat_history)
        return text


def _tree(context: Sequence[int], continuations: Sequence[Sequence[int]]) -> Tree:
    rows = [np.array(ids, np.int32) for ids in continuations]
    return Tree(np.array(context, np.int32), tuple(rows), tuple(np.ones(len(ids), np.bool_) for ids in rows))


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """In this order, as many together as a batch has room for."""
    members: list[int] = []
    for index in order:
        if members and sum(lengths[member] for member in members) + lengths[index] > TOKENS_PER_BATCH:
            yield members
            members = []
        members.append(index)
    if members:
        yield members


def _sampling(keys: Mapping[str, Any]) -> Sampling:
    drawn = bool(keys.get("do_sample"))
    temperature = float(keys.get("temperature", 1.0)) if drawn else 0.0
    return Sampling(int(keys.get("max_gen_toks", MAX_NEW_TOKENS)), temperature, float(keys.get("top_p", 1.0)) if drawn else 1.0)


def _until(text: str, ends: str | Sequence[str]) -> str:
    for end in [ends] if isinstance(ends, str) else ends:
        text = text.split(end, maxsplit=1)[0] if end else text
    return text

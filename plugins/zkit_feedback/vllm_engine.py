"""Requests as vLLM takes them, and its outputs as replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.devices import give_back_memory
from zephyr_kit.protocols import Failure, Reply, Request
from zephyr_kit.template_process import TemplateRefusal, TemplateWriter, writer_for
from zephyr_kit.weights import admit, commit_of
from zkit_feedback.trouble import bracketed

if TYPE_CHECKING:
    from zkit_feedback.vllm import VllmCompleter


def write_replies(completer: VllmCompleter, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Failure]]:
    """The replies of one slice of the requests after the other."""
    give_back_memory()  # vLLM refuses to begin when its share of the GPU is not free
    llm = _load(completer)
    template = Path(completer.template).read_text("utf-8") if completer.template else None
    try:
        for first in range(0, len(requests), completer.slice):
            numbers = range(first, min(first + completer.slice, len(requests)))
            yield from _write_slice(llm, {number: requests[number] for number in numbers}, template)
    finally:
        del llm
        give_back_memory()  # the engine ends when nobody holds it, and what it holds is not only torch's in this process


def _load(completer: VllmCompleter) -> Any:
    import vllm

    revision = commit_of(completer.weights, completer.revision)
    admit(completer.weights, revision)
    longest = {} if completer.max_length is None else {"max_model_len": completer.max_length}
    return vllm.LLM(
        model=completer.place,
        revision=revision,
        trust_remote_code=False,
        dtype=completer.dtype,
        tensor_parallel_size=completer.tensor_parallel,
        gpu_memory_utilization=completer.gpu_memory,
        **longest,
    )


def _write_slice(llm: Any, requests: dict[int, Request], template: str | None) -> Iterator[tuple[int, Reply | Failure]]:
    # One prompt that is too long is an error of the whole call (vLLM issue 16732), so it is not let in.
    tokenizer = llm.get_tokenizer()
    writer = writer_for(template or tokenizer.get_chat_template(), tokenizer.special_tokens_map, ours=False)
    prompts: dict[int, list[int]] = {}
    for number, request in requests.items():
        prompt = _prompt(llm, request, writer)
        if isinstance(prompt, Failure):
            yield number, prompt
        else:
            prompts[number] = prompt
    if prompts:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts.values()]
        outputs = llm.generate(asked, [_sampling(requests[number]) for number in prompts], use_tqdm=False)
        yield from zip(prompts, map(_reply, outputs), strict=True)


def _prompt(llm: Any, request: Request, writer: TemplateWriter) -> list[int] | Failure:
    tokenizer, longest = llm.get_tokenizer(), llm.llm_engine.model_config.max_model_len
    turns = [{"role": turn.role, "content": turn.content} for turn in request.dialogue]
    forged = [token for token in tokenizer.all_special_tokens if any(token in turn["content"] for turn in turns)]
    if forged:
        return Failure(f"a turn holds a control token ({forged[0]!r})")
    try:
        (text,) = writer.write(turns, [(len(turns), True)])
    except TemplateRefusal as error:
        return Failure(bracketed("the chat template cannot write the dialogue", str(error)))
    prompt: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if len(prompt) >= longest:
        return Failure(f"the dialogue is longer than the model's positions ({len(prompt):,} tokens of {longest:,})")
    return prompt


def _sampling(request: Request) -> Any:
    import vllm

    wanted = request.sampling
    few = {"top_k": wanted.top_k} if wanted.top_k else {}
    return vllm.SamplingParams(
        temperature=wanted.temperature, top_p=wanted.top_p, max_tokens=wanted.max_new_tokens, seed=wanted.seed, **few
    )


def _reply(output: Any) -> Reply:
    (written,) = output.outputs
    return Reply(written.text.strip(), finished=written.finish_reason != "length")

"""Attentions and fused kernels of the 7 B shape: time forward and backward, memory, and the error beside wider arithmetic."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import RESULTS, confine, surroundings, timed
from zephyr_kit.sizes import GIB

PACKAGES = {"liger-kernel": "liger_kernel", "peft": "peft", "torch": "torch", "triton": "triton", "xformers": "xformers"}
HEADS, KV_HEADS, SIZE = 32, 8, 128
WIDTH, MLP_WIDTH, VOCABULARY, RANK = 4096, 14336, 32000, 16
TOKENS = 8192
Call = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One piece of work, several ways to do it, and the same in wider arithmetic on a part of it."""

    name: str
    inputs: Sequence[Any]
    """Those that are leaves of the graph get a gradient."""
    ways: Mapping[str, Call]
    expected: Call | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where, and how large."""
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--times", type=int, default=10, help="each way is timed, after three times that are not")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")


def run(given: argparse.Namespace) -> None:
    """Every way of every case; one that cannot is told with its reason."""
    import torch

    confine(given.processors)
    rows = []
    for case in _cases(given):
        expected = _results(case.expected, case.inputs) if case.expected is not None else None
        for name, way in case.ways.items():
            row = {"case": case.name, "way": name, **_tried(way, case.inputs, expected, given)}
            print(" ".join(f"{value}" for value in row.values()), flush=True)  # noqa: T201
            rows.append(row)
    given.results.mkdir(parents=True, exist_ok=True)
    packages = [name for name, module in PACKAGES.items() if find_spec(module) is not None]
    card = torch.cuda.get_device_name() if given.device == "cuda" else given.device
    facts = {"surroundings": {**surroundings(given.processors, packages), "device": card}, "results": rows}
    (given.results / "kernels.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def _tried(way: Call, inputs: Sequence[Any], expected: Sequence[Any] | None, given: argparse.Namespace) -> dict[str, Any]:
    import torch

    try:
        found = _results(way, inputs)
        error = None if expected is None else max(_distance(one, other) for one, other in zip(found, expected, strict=False))
        del found
        times, peak = _timed(way, inputs, given)
    except Exception as failure:  # whatever a kernel raises on a machine it is not for
        told = (str(failure).splitlines() or [""])[0][:160]
        return {"ms": None, "GiB": None, "error": None, "why not": f"{type(failure).__name__}: {told}"}
    finally:
        for each in inputs:
            each.grad = None
        if given.device == "cuda":
            torch.cuda.empty_cache()
    return {"ms": round(1e3 * median(times), 3), "GiB": round(peak / GIB, 3), "error": error and float(f"{error:.1e}"), "why not": ""}


def _timed(way: Call, inputs: Sequence[Any], given: argparse.Namespace) -> tuple[list[float], int]:
    """Seconds of each time, one after the other without a wait, and the bytes that it takes beside its inputs."""
    import torch

    cuda = given.device == "cuda"
    upstream = _upstream(way(*inputs))
    for _ in range(3):
        _results(way, inputs, upstream)
    before = torch.cuda.memory_allocated() if cuda else 0
    if not cuda:
        return [timed(lambda: _results(way, inputs, upstream))[0] for _ in range(given.times)], 0
    torch.cuda.reset_peak_memory_stats()
    moments = [torch.cuda.Event(enable_timing=True) for _ in range(given.times + 1)]
    moments[0].record()
    for moment in moments[1:]:
        _results(way, inputs, upstream)
        moment.record()
    torch.cuda.synchronize()
    times = [one.elapsed_time(other) / 1e3 for one, other in pairwise(moments)]
    return times, torch.cuda.max_memory_allocated() - before


def _results(way: Call, inputs: Sequence[Any], upstream: Any = None) -> list[Any]:
    """The output, and the gradients of a projection of it."""
    for each in inputs:
        each.grad = None
    output = way(*inputs)
    output.backward(_upstream(output) if upstream is None else upstream)
    return [output.detach(), *(each.grad for each in inputs if each.grad is not None)]


def _upstream(output: Any) -> Any:
    """The same projection of every output of this shape."""
    import torch

    return torch.linspace(-1, 1, output.shape[-1], device=output.device).to(output.dtype).expand(output.shape).contiguous()


def _distance(one: Any, other: Any) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def _cases(given: argparse.Namespace) -> Iterator[Case]:
    import torch

    torch.manual_seed(0)
    dtype = getattr(torch, given.dtype)

    def draw(*shape: int, scale: float = 1.0) -> Any:
        return (scale * torch.randn(shape, device=given.device)).to(dtype).requires_grad_()

    for name, batch in _rows(given):
        yield _attention(name, batch, draw)
    yield from _pointwise(draw, given)
    yield _head(draw, given)
    yield from _adapters(draw, given)


def _rows(given: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Pairs of about UltraFeedback's lengths, with their prompts shared and repeated; packed dialogues; and one long one."""
    import numpy as np
    import torch

    from zephyr_kit.batch import Tree, lay_out

    def tree(prompt: int, *completions: int) -> Tree:
        ids = [np.ones(size, np.int32) for size in (prompt, *completions)]
        return Tree(ids[0], tuple(ids[1:]), tuple(np.ones(size, np.bool_) for size in completions))

    device, draw = torch.device(given.device), np.random.default_rng(0)
    pairs, room = [], given.tokens
    while room > 1024:
        sizes = [int(size) for size in np.exp(draw.normal(np.log((110, 260, 230)), (1.0, 0.7, 0.8))).clip(8, 340)]
        pairs.append(tree(*sizes))
        room -= sum(sizes)
    pairs.append(tree(room // 2, room - room // 2 - 1, 1))
    yield "pairs, prompts shared", lay_out(pairs).to(device)
    yield "pairs, prompts repeated", lay_out(pairs, share_prompts=False).to(device)
    for count in (16, 8, 4, 2, 1):
        size = given.tokens // count
        yield f"{count} dialogues", lay_out([tree(size // 4, size - size // 4)] * count).to(device)
    yield "1 prompt of half, 4 completions", lay_out([tree(given.tokens // 2, *[given.tokens // 8] * 4)]).to(device)


def _attention(name: str, batch: Any, draw: Call) -> Case:
    from zkit_attentions.flash import Flash
    from zkit_attentions.flex import Flex
    from zkit_attentions.segments import Segments
    from zkit_attentions.varlen import Varlen
    from zkit_attentions.xformers import Xformers

    tokens = len(batch.tokens_T)
    # As the layers around it have them: tokens first in memory.
    inputs = [draw(tokens, heads, SIZE).detach().transpose(0, 1).requires_grad_() for heads in (HEADS, KV_HEADS, KV_HEADS)]

    def way(attention: Any) -> Call:
        return lambda *qkv: attention.attend(*qkv, batch, scale=SIZE**-0.5, window=None, dropout=0.0)

    kernels = (Varlen(), Flex(), Xformers(), Flash(2), Flash(3), Segments())
    exact = way(Segments())
    return Case(f"attention, {name}", inputs, {_named(each): way(each) for each in kernels}, lambda *qkv: exact(*(x.float() for x in qkv)))


def _named(attention: Any) -> str:
    version = getattr(attention, "version", "")
    return f"{type(attention).__name__.lower()}{version and f' {version}'}"


def _pointwise(draw: Call, given: argparse.Namespace) -> Iterator[Case]:
    from types import SimpleNamespace

    from torch.nn.functional import silu
    from zkit_mistral import liger, pointwise

    def rms(x: Any, weight: Any) -> Any:
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()) * weight.float()

    def norm(forward: Call) -> Call:
        return lambda x, weight: forward(SimpleNamespace(weight=weight, variance_epsilon=1e-5), x)

    ways = {"ours": norm(pointwise._scaled), "liger": norm(liger.scaled), "plain": lambda x, w: rms(x, w).to(x.dtype)}
    yield Case("RMSNorm", [draw(1, given.tokens, WIDTH), draw(WIDTH)], ways, rms)

    def gate(forward: Call) -> Call:
        def call(gate: Any, up: Any) -> Any:
            layer = SimpleNamespace(gate_proj=lambda _: gate * 1, up_proj=lambda _: up * 1, down_proj=lambda x: x)
            return forward(layer, None)

        return call

    ways = {"ours": gate(pointwise._gated), "liger": gate(liger.gated), "plain": lambda g, u: silu(g * 1) * (u * 1)}
    sizes = (1, given.tokens, MLP_WIDTH)
    yield Case("SwiGLU (and two copies)", [draw(*sizes), draw(*sizes)], ways, lambda g, u: silu(g.float()) * u.float())
    yield _rotation(draw, given)


def _rotation(draw: Call, given: argparse.Namespace) -> Case:
    import torch
    from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb
    from zkit_mistral.liger import rotated

    angles = torch.linspace(0, 50, given.tokens, device=given.device)[:, None] * torch.linspace(1, 0.01, SIZE // 2, device=given.device)
    turns = [turn.repeat(1, 2)[None] for turn in (angles.cos(), angles.sin())]

    def way(rotation: Call, cast: Call) -> Call:
        def call(query: Any, key: Any) -> Any:
            # Copies, for Liger's rotates in place.
            pair = rotation(cast(query) * 1, cast(key) * 1, *(cast(turn.to(query.dtype)) for turn in turns))
            return torch.cat(pair, 1)

        return call

    inputs = [draw(1, given.tokens, heads, SIZE).detach().transpose(1, 2).requires_grad_() for heads in (HEADS, KV_HEADS)]
    ways = {"plain": way(apply_rotary_pos_emb, lambda x: x), "liger": way(rotated, lambda x: x)}
    return Case("rotation (and copies)", inputs, ways, way(apply_rotary_pos_emb, lambda x: x.float()))


def _head(draw: Call, given: argparse.Namespace) -> Case:
    import torch
    from zkit_mistral.head import target_logp

    target = torch.randint(VOCABULARY, (given.tokens // 2,), device=given.device)

    def plain(hidden: Any, weight: Any) -> Any:
        return (hidden @ weight.T).float().log_softmax(-1).gather(-1, target[:, None]).squeeze(-1)

    def by_liger(hidden: Any, weight: Any) -> Any:
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

        losses = LigerCrossEntropyFunction.apply(hidden @ weight.T, target, None, -100, 0.0, 0.0, "none")
        return -(losses[0] if isinstance(losses, tuple) else losses)

    def frozen(hidden: Any, weight: Any) -> Any:
        return target_logp(hidden, weight.detach(), target)

    ways = {"ours": lambda h, w: target_logp(h, w, target), "liger's cross entropy of whole logits": by_liger, "plain": plain}
    inputs = [draw(given.tokens // 2, WIDTH), draw(VOCABULARY, WIDTH, scale=0.02)]
    return Case("head", inputs, {**ways, "ours, frozen": frozen}, lambda h, w: plain(h.float(), w.float()))


def _adapters(draw: Call, given: argparse.Namespace) -> Iterator[Case]:
    from peft.tuners.lora.layer import Linear as Adapted
    from torch import nn
    from zkit_mistral.low_rank import _adapted

    for name, (inside, outside) in {"LoRA, to the feed-forward part": (WIDTH, MLP_WIDTH), "LoRA, from it": (MLP_WIDTH, WIDTH)}.items():
        base = nn.Linear(inside, outside, bias=False, device="meta").to_empty(device=given.device).requires_grad_(requires_grad=False)
        base.weight.data = draw(outside, inside, scale=0.02).detach()
        layer = _lora_layer(Adapted, base)
        pair = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        for each, shape in zip(pair, ((RANK, inside), (outside, RANK)), strict=True):
            each.data = draw(*shape, scale=0.02).detach()

        def way(forward: Call, layer: Any = layer) -> Call:
            return lambda x, _down, _up: forward(layer, x)

        def bare(x: Any, _down: Any, _up: Any, base: Any = base) -> Any:
            return base(x)

        def wide(x: Any, down: Any, up: Any, base: Any = base) -> Any:
            x, down, up = (each.float() for each in (x, down, up))
            return x @ base.weight.float().T + x @ down.T @ up.T

        yield Case(name, [draw(given.tokens, inside), *pair], {"ours": way(_adapted), "peft": way(Adapted.forward), "without": bare}, wide)


def _lora_layer(kind: Any, base: Any) -> Any:
    from peft import LoraConfig

    config = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0)
    try:
        return kind(base, "default", config, r=RANK, lora_alpha=RANK)
    except TypeError:  # before peft 0.19
        return kind(base, "default", r=RANK, lora_alpha=RANK)

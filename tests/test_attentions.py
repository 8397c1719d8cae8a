"""Kernels for CUDA GPUs: on a CPU their plans, their two passes and what they refuse; on a GPU their laws."""

import sys
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flash_kernels import Plain
from random_data import random_trees
from zkit_attentions import varlen
from zkit_attentions.auto import Auto, choose
from zkit_attentions.flash import Flash, FlashAttention2
from zkit_attentions.flex import BLOCK, Flex, blocks, seen
from zkit_attentions.segments import Segments
from zkit_attentions.two_pass import Pass, misfit, passes, two_pass_attention
from zkit_attentions.varlen import TorchFlash, Varlen
from zkit_attentions.xformers import Xformers, XformersFlash

from zephyr_kit import ZkitError
from zephyr_kit.batch import Tree, lay_out, visible
from zephyr_kit.testing import AttentionLaws
from zephyr_kit.testing.strategies import trees

CPU = torch.device("cpu")
SHARED = lay_out(random_trees(5, 3, longest=200))
GPU_KERNELS = [Varlen(), Flex(), Flash(), Flash(3), Xformers()]


@dataclass(frozen=True)
class TwoPass:
    """Two passes of a kernel that a CPU has."""

    kernel: Any = field(compare=False)

    def problems(self, device):
        return []

    def attend(self, query, key, value, batch, *, scale, window, dropout):
        return two_pass_attention(self.kernel, query, key, value, batch, scale=scale, window=window)


class InFloat64(AttentionLaws):
    dtype = torch.float64
    tolerance = 1e-12
    windows = (None, 1000)  # shorter ones the kernels leave to others


class TestTwoPasses(InFloat64):
    attention = TwoPass(Plain())


class TestAuto(AttentionLaws):
    attention = Auto()


class TestVarlen(InFloat64):
    """With torch's operators replaced by mathematics that reads the same arguments."""

    attention = TwoPass(TorchFlash())

    @pytest.fixture(autouse=True)
    def _operators(self, monkeypatch):
        def forward(query, key, value, *bounds_and_more, return_debug_mask, scale, **window):
            *bounds, dropout, causal = bounds_and_more
            assert (dropout, return_debug_mask) == (0.0, False)
            return *Plain().forward(query, key, value, _spans(*bounds, causal=causal), scale=scale, window=_width(window)), None, None, None

        def backward(grad, q, k, v, out, lse, *bounds_and_more, scale, **window):
            *bounds, dropout, causal, _, _ = bounds_and_more
            assert (dropout, lse.is_contiguous()) == (0.0, True)
            spans = _spans(*bounds, causal=causal)
            return Plain().backward(grad, (out, lse), (q, k, v), spans, scale=scale, window=_width(window))

        monkeypatch.setattr(varlen, "_forward", forward)
        monkeypatch.setattr(varlen, "_backward", backward)


class TestFlash2(InFloat64):
    """With a flash-attn of mathematics."""

    attention = TwoPass(FlashAttention2())

    @pytest.fixture(autouse=True)
    def _package(self, monkeypatch):
        def forward(query, key, value, *, softmax_scale, **settings):
            spans, window = _flash_settings(settings)
            return *Plain().forward(query, key, value, spans, scale=softmax_scale, window=window), None, None

        def backward(grad, q, k, v, out, lse, dq, dk, dv, *, softmax_scale, deterministic, **settings):
            spans, window = _flash_settings(settings)
            found = Plain().backward(grad, (out, lse), (q, k, v), spans, scale=softmax_scale, window=window)
            for place, value in zip((dq, dk, dv), found, strict=True):
                place.copy_(value)

        package, module = ModuleType("flash_attn"), ModuleType("flash_attn.flash_attn_interface")
        module._flash_attn_varlen_forward, module._flash_attn_varlen_backward = forward, backward
        monkeypatch.setitem(sys.modules, "flash_attn", package)
        monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", module)


class TestXformers(InFloat64):
    """With an xformers of mathematics, which like the real one takes as many heads of keys as of queries."""

    attention = TwoPass(XformersFlash())

    @pytest.fixture(autouse=True)
    def _package(self, monkeypatch):
        def forward(query, key, value, *, attn_bias, scale):
            assert query.shape[2] == key.shape[2] == value.shape[2]
            output, logsumexp = Plain().forward(query[0], key[0], value[0], attn_bias.spans(), scale=scale, window=attn_bias.window)
            return output[None], logsumexp[None]

        def backward(grad, output, lse, query, key, value, *, attn_bias, scale):
            result, given = (output[0], lse[0]), (query[0], key[0], value[0])
            found = Plain().backward(grad[0], result, given, attn_bias.spans(), scale=scale, window=attn_bias.window)
            return tuple(x[None] for x in found)

        ops, fmha, bias = ModuleType("xformers.ops"), ModuleType("xformers.ops.fmha"), ModuleType("xformers.ops.fmha.attn_bias")
        bias.BlockDiagonalMask, bias.BlockDiagonalCausalMask, bias._SeqLenInfo = _Bias, _CausalBias, SimpleNamespace
        fmha.memory_efficient_attention_forward_requires_grad, fmha.memory_efficient_attention_backward = forward, backward
        ops.fmha, fmha.attn_bias = fmha, bias
        for module in (ModuleType("xformers"), ops, fmha, bias):
            monkeypatch.setitem(sys.modules, module.__name__, module)


class _Bias:
    causal, window = False, None

    def __init__(self, *, q_seqinfo, k_seqinfo):
        self.queries, self.keys = q_seqinfo, k_seqinfo

    def spans(self):
        for one in (self.queries, self.keys):
            assert one.seqstart.tolist() == one.seqstart_py
            assert one.max_seqlen == max(b - a for a, b in pairwise(one.seqstart_py))
        return _spans(self.queries.seqstart, self.keys.seqstart, self.queries.max_seqlen, self.keys.max_seqlen, causal=self.causal)


class _CausalBias(_Bias):
    causal = True

    def make_local_attention(self, window):
        self.window = window
        return self


def _spans(query_bounds, key_bounds, max_queries, max_keys, *, causal):
    assert query_bounds.dtype == key_bounds.dtype == torch.int32
    lengths = [bounds.diff().tolist() for bounds in (query_bounds, key_bounds)]
    assert [max_queries, max_keys] == [max(each) for each in lengths]
    return Pass(slice(0), slice(0), query_bounds, key_bounds, *lengths, causal=causal)


def _width(window):
    assert window["window_size_right"] in (0, -1)
    return None if window["window_size_left"] < 0 else window["window_size_left"] + 1


def _flash_settings(settings):
    assert not settings["dropout_p"]
    names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    return _spans(*(settings[name] for name in names), causal=settings["causal"]), _width(settings)


class Keeping(Plain):
    """Keeps what it gives, as selective checkpointing does."""

    given = []

    def forward(self, *inputs, **settings):
        result = super().forward(*inputs, **settings)
        self.given.append([(x, x.clone()) for x in result])
        return result


def test_what_a_kernel_has_given_is_not_changed():
    kernel = Keeping()
    query, key, value = (torch.randn(heads, len(SHARED.tokens_T), 8) for heads in (4, 2, 2))
    two_pass_attention(kernel, query, key, value, SHARED, scale=1.0, window=None)
    assert len(kernel.given) == 2
    for one, before in (pair for result in kernel.given for pair in result):
        assert torch.equal(one, before)


def test_segments_in_another_order_are_refused():
    with pytest.raises(ValueError, match="parents come first"):
        replace(SHARED, parents=(SHARED.parents[-1], *SHARED.parents[:-1]))
    assert replace(SHARED).prepared is not SHARED.prepared


@pytest.mark.parametrize("kernel", [Varlen(), Flex(), Flash(), Flash(3), Xformers()], ids=repr)
def test_a_rehearsal_needs_no_gpu(kernel):
    query, key, value = (torch.randn(heads, len(SHARED.tokens_T), 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
    found = kernel.attend(query, key, value, SHARED, scale=1.0, window=None, dropout=0.0)
    assert torch.equal(found, Segments().attend(query, key, value, SHARED, scale=1.0, window=None, dropout=0.0))


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("share", [True, False])
def test_blocks_of_flex_hold_what_is_seen_and_those_in_full_nothing_else(window, share):
    batch = lay_out(random_trees(6, 3, longest=400), share_prompts=share)
    mask = visible(batch, window=window)
    mixed, full = blocks(batch, window=window)
    assert not (mixed & full).any()
    size = len(mixed) * BLOCK
    padded = torch.zeros(size, size, dtype=torch.bool)
    padded[: len(mask), : len(mask)] = mask
    tiles = padded.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(1, 2).flatten(2)
    assert not (tiles.any(-1) & ~torch.from_numpy(mixed | full)).any()
    assert tiles.all(-1)[torch.from_numpy(full)].all()
    # All that could be passed over is: no block is listed of which nothing is seen.
    assert window is not None or (tiles.any(-1) == torch.from_numpy(mixed | full)).all()


@pytest.mark.parametrize("window", [None, 7])
def test_flex_sees_what_is_visible(window):
    at = torch.arange(len(SHARED.tokens_T))
    assert torch.equal(seen(SHARED, window)(at, at, at[:, None], at[None, :]), visible(SHARED, window=window))


def test_flex_forward_equals_its_definition_where_a_cpu_computes_it():
    from torch.nn.attention.flex_attention import flex_attention
    from zkit_attentions.flex import _block_mask

    query, key, value = (torch.randn(heads, len(SHARED.tokens_T), 16) for heads in (4, 2, 2))
    with pytest.warns(UserWarning, match="without torch.compile"):
        found = flex_attention(query[None], key[None], value[None], block_mask=_block_mask(SHARED, None), enable_gqa=True)[0]
    expected = Segments().attend(query, key, value, SHARED, scale=0.25, window=None, dropout=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_passes_are_made_once_for_all_layers_and_not_taken_to_another_device():
    batch = lay_out(random_trees(3, 2))
    assert passes(batch) is passes(batch)
    assert not batch.to(torch.device("meta")).prepared


def test_no_prompt_is_shared_in_a_row_of_demonstrations():
    assert len(passes(lay_out(random_trees(5, 1)))) == 1
    assert len(passes(SHARED)) == 2


@pytest.mark.parametrize(
    ("query", "options", "told"),
    [
        (torch.zeros(4, 3, 64), {}, "computes in bfloat16 or float16, not in float32"),
        (torch.zeros(4, 3, 63, dtype=torch.bfloat16), {}, "heads of a multiple of 8 up to 256, not of 63"),
        (torch.zeros(4, 3, 264, dtype=torch.bfloat16), {}, "not of 264"),
        (torch.zeros(4, 3, 64, dtype=torch.bfloat16), {"dropout": 0.1}, "attention_dropout is 0.1"),
        (torch.zeros(4, 3, 64, dtype=torch.float16), {"window": 9}, "beyond the model's window of 9 tokens"),
    ],
)
def test_what_flash_kernels_cannot_is_said(query, options, told):
    settings = {"window": None, "dropout": 0.0, **options}
    assert told in misfit(query, SHARED, **settings)
    with pytest.raises(ZkitError, match='use "auto"'):
        Varlen().attend(query, query, query, SHARED, scale=1.0, **settings)


def test_a_window_that_no_path_reaches_is_none():
    query = torch.zeros(4, 3, 64, dtype=torch.bfloat16)
    assert not misfit(query, SHARED, window=4096, dropout=0.0)
    assert not misfit(query, lay_out(random_trees(5, 1, longest=200)), window=9, dropout=0.0)


@pytest.mark.parametrize("kernel", GPU_KERNELS, ids=repr)
def test_without_a_gpu_each_refuses_and_names_what_runs(kernel):
    (told,) = kernel.problems(CPU)
    assert "runs on CUDA GPUs, and the device is cpu" in told
    assert '"auto"' in told


@pytest.mark.parametrize(("kernel", "package"), [(Flash(), "flash_attn"), (Flash(4), "flash_attn.cute"), (Xformers(), "xformers")])
def test_a_missing_package_is_named(kernel, package, monkeypatch):
    monkeypatch.setattr("zkit_attentions.cuda.find_spec", lambda name: None)
    (told,) = kernel.problems(torch.device("cuda"))
    assert f"needs {package}, which is not installed: pip install" in told


def test_an_older_gpu_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert Varlen().problems(torch.device("cuda")) == [
        '[model] attention: varlen needs a GPU of compute capability 8.0 or higher, and cuda has 7.5; use "auto"'
    ]


@pytest.mark.parametrize(("version", "capability"), [(3, (10, 0)), (4, (12, 0))])
def test_a_gpu_that_a_version_was_not_made_for_is_told(version, capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("zkit_attentions.cuda.find_spec", lambda name: object())
    (told,) = Flash(version).problems(torch.device("cuda"))
    assert f"compute capability up to {9 if version == 3 else 10}.x, and cuda has {capability[0]}.0" in told


def test_varlen_is_torchs_own_again_after_flash(monkeypatch):
    monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: "FA3", raising=False)
    restored = []
    monkeypatch.setattr(torch.nn.attention, "restore_flash_attention_impl", lambda: restored.append(1), raising=False)
    Varlen().kernel()
    assert restored
    monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)
    Varlen().kernel()
    assert len(restored) == 1


def test_auto_takes_segments_on_a_cpu():
    query = torch.zeros(4, len(SHARED.tokens_T), 64, dtype=torch.bfloat16)
    assert choose(query, SHARED, window=None, dropout=0.0) == Segments()
    assert Auto().choice(CPU) == "segments: the device is cpu"


class _OnAGpu(SimpleNamespace):
    """A query that says it is on a GPU."""

    device, shape, dtype = torch.device("cuda"), (4, 100, 64), torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "options", "chosen"),
    [
        (torch.bfloat16, {}, Varlen()),
        (torch.float16, {"window": 4096}, Varlen()),
        (torch.bfloat16, {"window": 9}, Flex()),
        (torch.float32, {}, Segments()),
        (torch.bfloat16, {"dropout": 0.1}, Segments()),
    ],
)
def test_auto_takes_the_fastest_that_can_on_a_gpu(dtype, options, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr("zkit_attentions.cuda.find_spec", lambda name: object())
    batch = lay_out(random_trees(5, 3, longest=200))
    found = choose(_OnAGpu(dtype=dtype), batch, **{"window": None, "dropout": 0.0, **options})
    assert found == chosen


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), Segments()), ((8, 9), Varlen()), ((10, 0), Varlen())])
def test_auto_takes_long_segments_one_by_one_on_hopper(capability, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    ids = np.ones(4000, np.int32)
    batch = lay_out([Tree(ids[:10], (ids,), (ids > 0,))])
    assert choose(_OnAGpu(), batch, window=None, dropout=0.0) == chosen
    assert ("tokens each" in Auto().choice(torch.device("cuda"))) == (chosen == Segments())


def test_torch_without_flash_attention_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    (told,) = Varlen().problems(torch.device("cuda"))
    assert "without which this torch was built" in told
    assert Auto().choice(torch.device("cuda")).startswith("segments: ")


class OnAGpu(AttentionLaws):
    device = torch.device("cuda")
    dtype = torch.bfloat16
    tolerance = 3e-2
    heads = (8, 2)
    size = 128
    windows = (None,)

    @pytest.fixture(autouse=True)
    def _machine(self):
        if problems := self.attention.problems(self.device) if torch.cuda.is_available() else ["no GPU"]:
            pytest.skip(problems[0])

    def test_sees_no_further_than_its_window_where_nothing_is_shared(self):
        """Mistral 7B v0.1 has one, of 4,096 tokens."""

        class Narrow(type(self)):
            windows = (50,)

        Narrow()._for_rows(trees(2, count=(2, 4), shortest=130, longest=300), share_prompts=False, cases=self.long_cases, shrink=False)


@pytest.mark.gpu
class TestVarlenOnAGpu(OnAGpu):
    attention = Varlen()


@pytest.mark.gpu
class TestFlexOnAGpu(OnAGpu):
    attention = Flex()


@pytest.mark.gpu
class TestFlexWithAWindowOnAGpu(OnAGpu):
    attention = Flex()
    windows = (50,)


@pytest.mark.gpu
class TestXformersOnAGpu(OnAGpu):
    attention = Xformers()


@pytest.mark.gpu
class TestFlashOnAGpu(OnAGpu):
    attention = Flash()


@pytest.mark.gpu
class TestAutoOnAGpu(OnAGpu):
    attention = Auto()


@pytest.mark.gpu
class TestAutoWithAWindowOnAGpu(OnAGpu):
    attention = Auto()
    windows = (50,)

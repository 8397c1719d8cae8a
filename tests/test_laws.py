"""The built-in plugins obey the laws that third parties are asked to obey."""

import pytest
import torch
from zkit_attentions.dense import Dense
from zkit_attentions.segments import Segments
from zkit_mistral.backend import Lora, Mistral, Quantize
from zkit_optimizers.adamw import AdamW, AdamW8bit, PagedAdamW8bit, PagedAdamW32bit
from zkit_quickstart.judge import QuickstartJudge
from zkit_quickstart.source import QuickstartData

from zephyr_kit.example import Message
from zephyr_kit.testing import AttentionLaws, BackendLaws, DataSourceLaws, JudgeLaws, OptimizerLaws


class TestDense(AttentionLaws):
    attention = Dense()


class TestSegments(AttentionLaws):
    attention = Segments()


class TestSegmentsInFloat64(AttentionLaws):
    attention = Segments()
    dtype = torch.float64
    tolerance = 1e-12


class TestAdamW(OptimizerLaws):
    factory = AdamW()


class TestAdamW8bit(OptimizerLaws):
    factory = AdamW8bit()


class TestPagedAdamW8bit(OptimizerLaws):
    factory = PagedAdamW8bit()


class TestPagedAdamW32bit(OptimizerLaws):
    factory = PagedAdamW32bit()


class TestQuickstartText(DataSourceLaws):
    source = QuickstartData("text", count=50)


class TestQuickstartChat(DataSourceLaws):
    source = QuickstartData("chat", count=50)


class TestQuickstartPreferences(DataSourceLaws):
    source = QuickstartData("preference", count=50)


class _Tiny(BackendLaws):
    """A random model of Mistral's shape, with each way of training it."""

    overrides: dict

    @pytest.fixture(autouse=True)
    def _backend(self, tmp_path):
        base = Mistral(weights="none", dtype="float32", attention=Segments())
        small = base.miniature(tmp_path)
        self.backend = Mistral(weights=small.weights, template="zephyr", attention=Segments(), **{"dtype": "float32", **self.overrides})


class TestFullWeights(_Tiny):
    overrides: dict = {}


class TestFloat64(_Tiny):
    overrides = {"dtype": "float64"}
    tolerance = 1e-10


class TestLora(_Tiny):
    overrides = {"lora": Lora(rank=4, dropout=0.1)}


class TestRsLora(_Tiny):
    overrides = {"lora": Lora(rank=4, rslora=True, targets=("q_proj", "v_proj"))}


class TestDora(_Tiny):
    overrides = {"lora": Lora(rank=4, dora=True)}


class TestQlora(_Tiny):
    overrides = {"lora": Lora(rank=4), "quantize": Quantize()}


class TestQloraIn8Bits(_Tiny):
    overrides = {"lora": Lora(rank=4), "quantize": Quantize(bits=8)}
    tolerance = 5e-3


class TestQuickstartJudge(JudgeLaws):
    judge = QuickstartJudge()
    dialogue = (Message("user", "Tell me a short story about a brave otter who finds a map in the old mill."),)
    better = (
        "Once upon a time, a brave otter named Luna was playing in the old mill. Suddenly she saw a map with a red star in one corner, "
        "lying behind a sack of flour. In the end, Luna and a kind owl danced until the stars came out. Sweet dreams!"
    )
    worse = "An otter. An otter. An otter ..."

"""Layers compared one by one: what is allowed by which type, and that none is left out."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from zkit_export.layers import Seen, compare_layers
from zkit_export.refusal import ParityError

WIDTH = 16


class Model(nn.Module):
    """Three layers and a head that shares the embeddings' weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WIDTH, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=number == 1) for number in range(3))
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, skip=()):
        hidden = self.embed(ids)
        for number, layer in enumerate(self.layers):
            hidden = hidden if number in skip else layer(hidden)
        return self.head(hidden)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def seen_of(model: Model, **how) -> Seen:
    seen = Seen()
    with seen.watching(model), torch.no_grad():
        model(torch.arange(8), **how)
    return seen


def written(folder, model: Model, *, times: float = 1.0, but: str = ""):
    tensors = {name: times * tensor.clone() for name, tensor in model.state_dict().items() if name not in ("head.weight", but)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_every_layer_with_weights_of_its_own_is_compared(model, tmp_path):
    found = compare_layers(written(tmp_path, model), seen_of(model), allowed=1e-5)
    found.check()
    assert found.num_layers == 3


@pytest.mark.parametrize("times", [0.99, 1.01])
def test_an_error_in_all_layers_alike_is_found_but_on_a_base_in_8_bits(model, tmp_path, times):
    folder, seen = written(tmp_path, model, times=times), seen_of(model)
    with pytest.raises(ParityError, match=r"differs by 1\.00%, where its type explains 0\.80%"):
        compare_layers(folder, seen, allowed=0.008).check()
    compare_layers(folder, seen, allowed=0.008, eight_bits=True).check()


def test_8_bits_explain_no_more_than_5_percent(model, tmp_path):
    with pytest.raises(ParityError, match=r"differs by 6\.00%, where its type explains 5\.00%"):
        compare_layers(written(tmp_path, model, times=1.06), seen_of(model), allowed=0.008, eight_bits=True).check()


def test_a_layer_that_is_not_compared_is_an_error(model, tmp_path):
    with pytest.raises(ParityError, match=r"layers\.2 \(and 0 more\) could not be compared"):
        compare_layers(written(tmp_path, model, but="layers.2.weight"), seen_of(model), allowed=0.008).check()
    with pytest.raises(ParityError, match=r"layers\.1 \(and 0 more\) could not be compared"):
        compare_layers(written(tmp_path, model), seen_of(model, skip=(1,)), allowed=0.008).check()


def test_that_no_layer_was_seen_is_an_error(model, tmp_path):
    with pytest.raises(ParityError, match="any layer could not be compared"):
        compare_layers(written(tmp_path, model), Seen(), allowed=0.008).check()

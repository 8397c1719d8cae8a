"""A model with its adapter merged in, written piece by piece: no more is in memory than one shard.

W' = W + scale B A (arXiv 2106.09685), in float32. A base that was trained on in few bits is rounded
to them and back again first, since the adapter was trained on what that gives (arXiv 2305.14314).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zephyr_kit import ZkitError
from zephyr_kit.protocols import Start
from zephyr_kit.records import write_json
from zephyr_kit.weights import INDEX_FILE, WEIGHTS_FILE, weight_files
from zkit_mistral.adapters import WEIGHTS_FILE as ADAPTER_FILE
from zkit_mistral.adapters import check_adapter, is_adapter
from zkit_mistral.loading import bare_weights, origin_of, tokenizer
from zkit_mistral.quiet import quiet

if TYPE_CHECKING:
    from zkit_mistral.settings import Quantize, Settings

GENERATION = "generation_config.json"
SHARD_BYTES = 2 * 2**30
PREFIX = "base_model.model."
"""Before the names of layers in an adapter's file."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter's file says of each layer."""

    folder: Path | None
    config: Any = None

    @classmethod
    def of(cls, folder: Path | None) -> Adapter:
        """The adapter in a folder; one that says nothing, where there is none."""
        if folder is None or not is_adapter(folder):
            return cls(None)
        from peft import LoraConfig

        check_adapter(folder)
        return cls(folder, LoraConfig.from_pretrained(str(folder)))

    def parts(self, layer: str) -> dict[str, Tensor]:
        """The matrices of a layer, in float32, by what they are called."""
        if self.folder is None:
            return {}
        before = f"{PREFIX}{layer}."
        with safe_open(self.folder / ADAPTER_FILE, "pt") as file:
            names = [name for name in file.keys() if name.startswith(before)]  # noqa: SIM118  not a mapping
            return {name.removeprefix(before).removesuffix(".weight"): file.get_tensor(name).float() for name in names}

    def layers(self) -> set[str]:
        """The layers that it says something of."""
        if self.folder is None:
            return set()
        with safe_open(self.folder / ADAPTER_FILE, "pt") as file:
            return {name.removeprefix(PREFIX).partition(".lora_")[0] for name in file.keys()}  # noqa: SIM118

    def scale(self, layer: str) -> float:
        """What the product is multiplied by, as peft has it."""
        from peft.utils.other import get_pattern_key

        config = self.config
        rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, layer), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, layer), config.lora_alpha)
        return float(alpha / rank**0.5 if config.use_rslora else alpha / rank)

    def merged(self, layer: str, weight: Tensor) -> Tensor:
        """The weight of a layer (out, in), with what the adapter adds to it."""
        parts = self.parts(layer)
        if not parts:
            return weight
        whole = weight.to(torch.promote_types(weight.dtype, torch.float32))
        whole = whole.addmm(parts["lora_B"].to(whole), parts["lora_A"].to(whole), alpha=self.scale(layer))
        if "lora_magnitude_vector" in parts:  # DoRA (arXiv 2402.09353, equation 5)
            whole *= (parts["lora_magnitude_vector"].to(whole) / whole.norm(dim=1))[:, None]
        return whole


@dataclass(frozen=True)
class Shard:
    """Tensors that are written into one file."""

    names: tuple[str, ...]
    size: int


def merge(settings: Settings, folder: Path, *, start: Start, dtype: str | None, advance: Callable[[int], None]) -> None:
    """See `protocols.MergingBackend`."""
    if start.folder is None and settings.scratch is not None:
        raise ZkitError("[model.scratch] has random weights, which are worth nothing before a stage has trained them")
    wanted = getattr(torch, dtype or settings.dtype)
    place, revision = bare_weights(settings, start)
    sources = weight_files(place, revision)
    with quiet(), torch.device("meta"):
        model = _shape(settings, start)
    adapter, rounded = Adapter.of(start.folder), _rounded(model, settings.quantize)
    shapes = _shapes(model, sources, adapter)
    folder.mkdir(parents=True, exist_ok=True)
    shards, done, places = _shards(shapes, wanted), 0, dict[str, str]()
    for number, shard in enumerate(shards, 1):
        tensors = {}
        for name in shard.names:
            weight = _read(sources[name], name)
            layer = name.removesuffix(".weight")
            if layer in rounded and settings.quantize is not None:
                weight = in_few_bits(weight.to(getattr(torch, settings.dtype)), settings.quantize)
            tensors[name] = adapter.merged(layer, weight).to(wanted).contiguous()
            done += tensors[name].nbytes
            advance(done)
        file = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": done}, "weight_map": places}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=1, sort_keys=True), "utf-8")
    _write_rest(settings, model, folder, start, wanted)


def in_few_bits(weight: Tensor, quantize: Quantize) -> Tensor:
    """The weight as training had it: rounded by bitsandbytes, and read back, in its own type."""
    import bitsandbytes
    from peft.utils.integrations import dequantize_bnb_weight

    facts = quantize.facts()
    # Where it was done in training, most likely; and a CPU takes long.
    weight = weight.to("cuda" if torch.cuda.is_available() else "cpu")
    if facts["bits"] == 8:
        rounded = bitsandbytes.nn.Int8Params(weight, requires_grad=False)._quantize(weight.device)
        state = bitsandbytes.MatmulLtState(SCB=rounded.SCB)
        return dequantize_bnb_weight(rounded, state).to("cpu", weight.dtype)  # type: ignore[no-any-return]
    packed, state = bitsandbytes.functional.quantize_4bit(
        weight, blocksize=64, quant_type=facts["kind"], compress_statistics=facts["double"], quant_storage=weight.dtype
    )
    return bitsandbytes.functional.dequantize_4bit(packed, state).cpu()  # type: ignore[no-any-return]


def _shape(settings: Settings, start: Start) -> Any:
    """The model without its weights."""
    from transformers import AutoModelForCausalLM

    config = origin_of(settings, start).config()
    if getattr(config, "quantization_config", None) is not None:
        raise ZkitError("the weights below the adapter are kept in few bits, and are not merged; name the whole ones in [model]")
    return AutoModelForCausalLM.from_config(config)


def _rounded(model: Any, quantize: Quantize | None) -> set[str]:
    """The layers that transformers keeps in few bits: all linear ones but the head."""
    head = model.get_output_embeddings()
    linear = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head}
    return linear if quantize is not None else set()


def _shapes(model: Any, sources: dict[str, Path], adapter: Adapter) -> dict[str, torch.Size]:
    """Every tensor that is to be written; refuses what would be left out in silence."""
    values = model.state_dict()
    shapes = {name: value.shape for name, value in values.items() if name in sources}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = [name for name in values if name not in sources and name not in tied]
    if missing:
        raise ZkitError(f"the files of the model name no {missing[0]} (and {len(missing) - 1} more); it cannot be merged from them")
    strange = sorted(layer for layer in adapter.layers() if f"{layer}.weight" not in shapes)
    if strange:
        raise ZkitError(f"{adapter.folder}: adapts {strange[0]}, which is no layer of the model below it")
    embeddings = model.get_input_embeddings()
    looked_up = [name for name, module in model.named_modules() if module is embeddings and name in adapter.layers()]
    if looked_up:
        raise ZkitError(f"{adapter.folder}: adapts the embeddings ({looked_up[0]}), which is not merged")
    return shapes


def _shards(shapes: dict[str, torch.Size], dtype: torch.dtype) -> list[Shard]:
    shards = [Shard((), 0)]
    for name, shape in shapes.items():
        size = shape.numel() * dtype.itemsize
        if shards[-1].names and shards[-1].size + size > SHARD_BYTES:
            shards.append(Shard((), 0))
        shards[-1] = replace(shards[-1], names=(*shards[-1].names, name), size=shards[-1].size + size)
    return shards


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
        return tensor


def _write_rest(settings: Settings, model: Any, folder: Path, start: Start, dtype: torch.dtype) -> None:
    """Configuration, generation settings and tokenizer."""
    model.config.dtype = dtype
    with quiet():
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    chat = tokenizer(settings, start)
    left = folder / GENERATION if start.folder is None else start.folder / GENERATION
    ends = {"eos_token_id": chat.stop_ids, "pad_token_id": chat.tokens.eos_token_id}
    write_json(folder / GENERATION, {**json.loads((left if left.exists() else folder / GENERATION).read_text("utf-8")), **ends})
    chat.tokens.save_pretrained(folder)

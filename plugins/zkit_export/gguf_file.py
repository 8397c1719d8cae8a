"""A model in Hugging Face format as one GGUF file, tensor by tensor (github.com/ggml-org/ggml, docs/gguf.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from zephyr_kit import ZkitError
from zephyr_kit.weights import CONFIG, weight_files
from zkit_export.refusal import ParityError
from zkit_export.served import TOKENIZER_FILE, Served
from zkit_export.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = {"MistralForCausalLM": "llama", "LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""What PyPI's gguf writes by itself."""
ROUNDING = {"F32": 1e-6, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 0.01}
ROUNDING_OF_OTHERS = 0.5
"""How far a tensor is from what it was before it was rounded to a type, as a share of it."""
BLOCK = 32
"""Weights under one scale in q8_0."""


@dataclass(frozen=True)
class Source:
    """The folder that is converted."""

    folder: Path
    name: str

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration."""
        found: dict[str, Any] = json.loads((self.folder / CONFIG).read_text("utf-8"))
        return found

    @property
    def architecture(self) -> str:
        """As GGUF names it."""
        (theirs,) = self.config["architectures"]
        if theirs not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ZkitError(
                f"{theirs} is not written as GGUF here ({known} are), and llama.cpp's convert_hf_to_gguf.py is not on the PATH to do it"
            )
        return ARCHITECTURES[theirs]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its name in GGUF, in its order; rows of queries and keys as llama.cpp rotates them."""
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        arch = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == self.architecture)
        names = get_tensor_name_map(arch, self.config["num_hidden_layers"])
        for name, file in weight_files(str(self.folder), None).items():
            theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if theirs is None:
                raise ZkitError(f"{file}: {name} has no name in GGUF's {self.architecture}")
            with safe_open(file, "pt") as opened:
                yield theirs, self._rotated(name, opened.get_tensor(name))

    def _rotated(self, name: str, tensor: Tensor) -> Tensor:
        heads = {"q_proj": self.config["num_attention_heads"], "k_proj": self.config["num_key_value_heads"]}
        layer = name.split(".")[-2]
        if self.architecture != "llama" or layer not in heads:
            return tensor
        # Halves side by side, as transformers rotates, become pairs, as llama.cpp does.
        halves = tensor.reshape(heads[layer], 2, tensor.shape[0] // heads[layer] // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)


def is_ours(source: Source) -> bool:
    """Whether an architecture is written here."""
    return source.config["architectures"][0] in ARCHITECTURES


def gguf_problem() -> str:
    """What is missing to write GGUF; empty if nothing."""
    return "" if find_spec("gguf") else "writing GGUF needs the gguf package: pip install 'zephyr-kit[gguf]'"


def write_gguf(source: Source, file: Path, kind: str, advance: Callable[[int], None]) -> None:
    """Write the model as one of `TYPES`; `advance` is told the bytes written so far."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(file, source.architecture)
    _describe(writer, source, kind)
    wanted = GGMLQuantizationType[TYPES[kind]]
    for name, tensor in source.tensors():
        stored = _stored(tuple(tensor.shape), wanted)
        shape, size = _byte_shape(tuple(tensor.shape), stored)
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done = 0
    for _, tensor in source.tensors():
        data = _packed(tensor, _stored(tuple(tensor.shape), wanted))
        writer.write_tensor_data(data)
        done += data.nbytes
        advance(done)
    writer.close()


def check_gguf(source: Source, file: Path) -> None:
    """Read the file back, and raise ParityError unless every tensor is the folder's, but for what its type rounds."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    written = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for name, tensor in source.tensors():
        if name not in written:
            raise ParityError(f"{file.name}: has no {name}; nothing was kept")
        wanted, stored = tensor.float().numpy(), written.pop(name)
        found = dequantize(stored.data, stored.tensor_type).reshape(wanted.shape)
        error = float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), np.finfo(np.float32).tiny))
        if not error <= ROUNDING.get(stored.tensor_type.name, ROUNDING_OF_OTHERS):
            raise ParityError(f"{file.name}: {name} differs by {error:.2%} from what it was made of; nothing was kept")
    if written:
        raise ParityError(f"{file.name}: holds {min(written)}, which the model has not; nothing was kept")


def _stored(shape: tuple[int, ...], wanted: Any) -> Any:
    """Vectors are kept in float32, as llama.cpp has them; rows that are no whole blocks, in float16."""
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    return GGMLQuantizationType.F16 if wanted == GGMLQuantizationType.Q8_0 and shape[-1] % BLOCK else wanted


def _byte_shape(shape: tuple[int, ...], stored: Any) -> tuple[tuple[int, ...], int]:
    from gguf.quants import quant_shape_to_byte_shape

    found = quant_shape_to_byte_shape(shape, stored)
    return found, int(np.prod(found))


def _packed(tensor: Tensor, stored: Any) -> Any:
    from gguf.quants import quantize

    return quantize(tensor.float().numpy(), stored).view(np.uint8)


def _describe(writer: Any, source: Source, kind: str) -> None:
    """Shape, vocabulary and template."""
    from gguf import LlamaFileType

    config = source.config
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(source.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(_rotation(config))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{TYPES[kind]}"])
    _describe_tokens(writer, Served(source.folder), read_vocabulary(source.folder / TOKENIZER_FILE, config["vocab_size"]))


def _rotation(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10_000.0), **(config.get("rope_scaling") or {})}
    if rope.get("rope_type", "default") != "default":
        raise ZkitError(f"positions of the kind {rope['rope_type']!r} are not written as GGUF here; use llama.cpp's convert_hf_to_gguf.py")
    return float(rope.get("rope_theta", 10_000.0))


def _describe_tokens(writer: Any, served: Served, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.prefixed)
    else:
        writer.add_token_merges(vocabulary.merges)
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    special = {name: numbers[token] for name, token in served.special.items() if token in numbers}
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id), ("unk", writer.add_unk_token_id)):
        if f"{name}_token" in special:
            add(special[f"{name}_token"])
    if "pad_token" in special:
        writer.add_pad_token_id(special["pad_token"])
    # Whoever fills in the template drops the one that it writes, or adds this one: either way there is one.
    writer.add_add_bos_token(served.begins)
    writer.add_chat_template(served.template)

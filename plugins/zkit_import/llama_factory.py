"""LLaMA-Factory's training arguments; its data sets are looked up in `dataset_info.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zkit_import.data import Held, Portion, from_file, from_hub
from zkit_import.formats import Format
from zkit_import.losses import LLAMA_FACTORY
from zkit_import.readers import count, names, number, share, share_held_out, switch, targets, text, texts, whole, words
from zkit_import.said import Carry, Leave, NotHere, Rule, Said, Unfit, each
from zkit_import.training_keys import DEFAULTS, KERNELS, LOGGED, MACHINE, RESUME, TRAINING


def stage_of(value: Any) -> str:
    """`sft` or `dpo`; of `kto` it is said what to write."""
    if text(value) in ("sft", "dpo", "kto"):
        return str(value)
    raise Unfit("cannot be imported: of its stages, sft and dpo can")


def trained(value: Any) -> bool:
    """Whether adapters are trained."""
    if text(value) in ("lora", "full"):
        return str(value) == "lora"
    raise Unfit("cannot be imported: lora and full can")


def bits4(value: Any) -> bool:
    """4 bits or 8."""
    if whole(value) == 4:
        return True
    raise NotHere("the base is quantised to 4 bits, or to 8 by hand", near="model.quantize.bits")


def none_other(value: Any) -> bool:
    """Whether another loss is asked for: no."""
    if switch(value):
        raise Unfit("cannot be imported: there is no such loss here")
    return False


GALORE = Leave("there is no such optimizer here", "train.optimizer")
LORA = Leave("adapters begin as peft has them by default, with one learning rate", "model.lora")

KEYS: Mapping[str, Rule] = {
    **TRAINING,
    "stage": Carry("stage", stage_of),
    "finetuning_type": Carry("lora", trained),
    "model_name_or_path": Carry("weights", text),
    "model_revision": Carry("revision", text),
    "adapter_name_or_path": Leave("an adapter to begin with comes from the stage before"),
    "trust_remote_code": Leave("code of a model is run by repository and commit alone", "model.remote_code"),
    "lora_rank": Carry("rank", count),
    "lora_alpha": Carry("alpha", number),
    "lora_dropout": Carry("dropout", number),
    "lora_target": Carry("targets", targets),
    "use_rslora": Carry("rslora", switch),
    "use_dora": Carry("dora", switch),
    "create_new_adapter": Leave("a stage with adapters brings its own, on top of what the one before left", matters=False),
    **each(Leave("adapters are of linear layers alone", "model.lora.targets"), "additional_target"),
    **each(LORA, "pissa_init", "pissa_iter", "pissa_convert", "loraplus_lr_ratio", "loraplus_lr_embedding"),
    "quantization_bit": Carry("bits4", bits4),
    "quantization_method": Leave("quantisation is bitsandbytes'", "model.quantize", off=("bnb", "bitsandbytes")),
    "quantization_type": Carry("kind", text),
    "double_quantization": Carry("double", switch),
    "pure_bf16": Leave("updates are made in float32, or rounded at random", "train.optimizer.stochastic_rounding"),
    "disable_gradient_checkpointing": Carry("activation_checkpointing", lambda value: not switch(value)),
    "pref_beta": Carry("beta", number),
    "pref_loss": Carry("loss", names),
    "dpo_label_smoothing": Carry("label_smoothing", number),
    "pref_ftx": Carry("sft_weight", number),
    "pref_bco_weight": Carry("bco_weight", number),
    "ld_alpha": Carry("ld_alpha", share),
    "simpo_gamma": Carry("simpo_gamma", number),
    "kto_chosen_weight": Carry("desirable_weight", number),
    "kto_rejected_weight": Carry("undesirable_weight", number),
    **each(Leave("the reference is what the stage began with"), "ref_model", "ref_model_adapters", "ref_model_quantization_bit"),
    **each(
        Leave("there is no such loss here", "objective"),
        "train_on_prompt",
        "mask_history",
    ),
    **each(
        Leave("all weights are trained, or adapters", "model.lora"), "freeze_trainable_layers", "freeze_trainable_modules", "use_llama_pro"
    ),
    **each(GALORE, "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon"),
    "use_dft_loss": Carry("dft", switch),
    **each(Carry("other_loss", none_other), "use_asft_loss", "use_eaft_loss"),
    "template": Carry("named_template", text),
    "default_system": Carry("system", words),
    "enable_thinking": Leave("a template has no settings", "model.template", off=(True,)),
    "tool_format": Leave("there are no tool calls"),
    "cutoff_len": Carry("max_length", count),
    **each(Carry("packing", switch), "packing", "neat_packing"),
    "dataset": Carry("datasets", texts),
    "eval_dataset": Carry("eval_datasets", texts),
    "dataset_dir": Carry("dataset_dir", text),
    "max_samples": Carry("limit", whole),
    "val_size": Carry("val_size", share_held_out),
    "mix_strategy": Leave("rows of all data are mixed as they are", "fraction", off=("concat",)),
    "interleave_probs": Leave("say which share of each data set to take", "fraction"),
    "use_unsloth": Leave("unsloth is a backend", "model.use", matters=False),
    "rope_scaling": Leave("the context is the model's"),
    **each(KERNELS, "enable_liger_kernel", "use_unsloth_gc", "flash_attn", "shift_attn", "upcast_layernorm", "use_kv_cache"),
    **each(LOGGED, "plot_loss", "use_swanlab", "swanlab_project", "swanlab_run_name", "print_param_status", "compute_accuracy"),
    **each(RESUME, "overwrite_cache", "tokenized_path", "cache_dir"),
    **each(
        MACHINE,
        "preprocessing_num_workers",
        "preprocessing_batch_size",
        "streaming",
        "buffer_size",
        "low_cpu_mem_usage",
        "use_fast_tokenizer",
    ),
    **each(MACHINE, "data_shared_file_system", "media_dir", "use_reentrant_gc", "infer_backend", "infer_dtype", "eval_on_each_dataset"),
    **each(
        Leave("the tokenizer is the model's", "model.weights"), "resize_vocab", "add_tokens", "add_special_tokens", "split_special_tokens"
    ),
    "disable_shuffling": Leave("the order is drawn from the seed", "seed"),
    "early_stopping_steps": Leave("a stage takes all its steps", "train.keep_best"),
    **each(Leave("nothing is generated while training", matters=False), "predict_with_generate", "temperature", "top_p", "max_new_tokens"),
}

KNOWN = {
    "ultrachat_200k": ("HuggingFaceH4/ultrachat_200k", "train_sft"),
    "ultrafeedback": ("llamafactory/ultrafeedback_binarized", "train"),
}
"""Of the data sets that come with LLaMA-Factory, those of the recipe."""


def kind(said: Said) -> str:
    """`sft` or `dpo`."""
    return str(said.value("stage", "dpo" if said.gives("loss", "beta") else "sft"))


def defaults(stage: str, said: Said) -> Mapping[str, Any]:
    """LLaMA-Factory's."""
    rank = said.value("rank", 8)
    lora = {"lora": True, "rank": 8, "alpha": 2 * rank, "dropout": 0.0, "targets": "all-linear", "kind": "nf4", "double": True}
    common = {**DEFAULTS, **lora, "max_length": 2048, "activation_checkpointing": True}
    return {
        **common,
        **({"loss": ("sigmoid",), "beta": 0.1, "label_smoothing": 0.0, "simpo_gamma": 0.5}
           if stage == "dpo" else {"packing": False, "assistant_only": True}),
    }


def data(_table: Any, said: Said, stage: str) -> Held:
    """`dataset` and `eval_dataset`, by their names."""
    info = _info(said)
    limit = said.value("limit")
    train, test = (
        tuple(_portion(name, word, info, said, stage) for name in said.value(word, ())) for word in ("datasets", "eval_datasets")
    )
    return Held(tuple({**portion, **({"limit": limit} if limit else {})} for portion in train), test)


def _info(said: Said) -> Mapping[str, Any]:
    folder = Path(said.value("dataset_dir", "data"))
    for place in (folder, Path(said.file).parent / folder):
        file = place / "dataset_info.json"
        if file.is_file():
            try:
                read: Any = json.loads(file.read_text("utf-8"))
            except ValueError as error:
                raise said.error("dataset_dir", said.facts["datasets"].line, f"= {str(folder)!r}: {file} is not JSON: {error}") from error
            return {name: {"folder": place, **entry} for name, entry in read.items() if isinstance(entry, dict)}
    return {}


def _portion(name: str, word: str, info: Mapping[str, Any], said: Said, stage: str) -> Portion:
    entry = info.get(name)
    if entry is None and name in KNOWN:
        path, split = KNOWN[name]
        return from_hub(path, split=split, read_as={"format": "preference"} if stage == "dpo" else {})
    if entry is None:
        said.leave(word, f"what `{name}` is stands in dataset_info.json, which has no such entry or is not at hand", near="data.path")
        return from_file(f"{said.value('dataset_dir', 'data')}/{name}.jsonl", {"format": "preference"} if stage == "dpo" else {})
    read_as = _read_as(entry)
    if "hf_hub_url" in entry:
        return from_hub(entry["hf_hub_url"], split=entry.get("split", "train"), config=entry.get("subset"), read_as=read_as)
    return from_file(str(entry["folder"] / entry.get("file_name", f"{name}.json")), read_as)


def _read_as(entry: Mapping[str, Any]) -> Portion:
    """Its format, and columns of other names."""
    theirs, sharegpt = entry.get("columns", {}), entry.get("formatting") == "sharegpt"
    if entry.get("ranking"):
        names = {"prompt": theirs.get("messages" if sharegpt else "prompt", "conversations" if sharegpt else "instruction")}
        columns = {**names, **{key: theirs[key] for key in ("chosen", "rejected") if theirs.get(key, key) != key}}
        return {"format": "preference", "columns": columns}
    if sharegpt:
        read_as = "messages" if entry.get("tags", {}).get("role_tag") == "role" else "conversations"
        name = theirs.get("messages", "conversations")
        return {"format": read_as, **({} if name == read_as else {"columns": {read_as: name}})}
    ours = {
        "instruction": theirs.get("prompt", "instruction"),
        "input": theirs.get("query", "input"),
        "output": theirs.get("response", "output"),
    }
    columns = {key: name for key, name in ours.items() if key != name}
    return {"format": "alpaca", **({"columns": columns} if columns else {})}


FORMAT = Format(
    name="llama-factory",
    signs=("stage", "finetuning_type", "cutoff_len", "dataset_dir", "template", "pref_beta", "lora_rank", "lora_target", "dataset"),
    keys=KEYS,
    losses=LLAMA_FACTORY,
    kind=kind,
    defaults=defaults,
    data=data,
)

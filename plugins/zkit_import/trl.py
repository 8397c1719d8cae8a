"""trl's SFT and DPO: its configs and script arguments, in one YAML file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from zkit_import.data import Held, Portion, format_of, from_file, from_hub
from zkit_import.formats import Format
from zkit_import.kto import WEIGHTS, refused_kto
from zkit_import.losses import TRL as LOSSES_OF_TRL
from zkit_import.objective import OF_SFT
from zkit_import.readers import count, dtype, names, number, share, share_held_out, switch, targets, text, texts, weights, words
from zkit_import.said import Carry, Leave, Rule, Said, each, entries, hear
from zkit_import.training_keys import DEFAULTS, MACHINE, TRAINING

PREFERENCE = ("beta", "label_smoothing", "prompt_length", "precomputed")
"""What only a preference trainer is told."""

OTHERS = re.compile(r"\b(orpo|kto|cpo|simpo|grpo|ppo|reward)\b")
"""Trainers whose files look like those of DPO, or SFT."""

MODEL: Mapping[str, Rule] = {
    "model_name_or_path": Carry("weights", text),
    "model_revision": Carry("revision", text),
    **each(Carry("dtype", dtype), "dtype", "torch_dtype"),
    "trust_remote_code": Leave("code of a model is run by repository and commit alone", "model.remote_code"),
    **each(MACHINE, "attn_implementation", "use_flash_attention_2", "dataset_num_proc", "preprocessing_num_workers", "padding_free"),
    "use_peft": Carry("lora", switch),
    "lora_r": Carry("rank", count),
    "lora_alpha": Carry("alpha", number),
    "lora_dropout": Carry("dropout", number),
    "lora_target_modules": Carry("targets", targets),
    "use_rslora": Carry("rslora", switch),
    "use_dora": Carry("dora", switch),
    **each(Leave("adapters are of linear layers alone", "model.lora.targets"), "lora_modules_to_save", "lora_target_parameters"),
    "lora_task_type": Leave("always a causal language model", off=("CAUSAL_LM",)),
    "load_in_4bit": Carry("bits4", switch),
    "load_in_8bit": Carry("bits8", switch),
    "bnb_4bit_quant_type": Carry("kind", text),
    "use_bnb_nested_quant": Carry("double", switch),
    "bnb_4bit_quant_storage": MACHINE,
}

LOSSES: Mapping[str, Rule] = {
    "beta": Carry("beta", number),
    "label_smoothing": Carry("label_smoothing", number),
    "max_prompt_length": Carry("prompt_length", count),
    **each(Carry("precomputed", switch), "precompute_ref_log_probs"),
    **each(MACHINE, "precompute_ref_batch_size", "pad_to_multiple_of", "pad_token", "padding_value", "label_pad_token_id"),
    **each(Leave("the reference stays what it was"), "sync_ref_model"),
    **each(Leave("for a reference that is moved", matters=False), "ref_model_mixup_alpha", "ref_model_sync_steps"),
    "disable_dropout": Carry("no_dropout", switch),
    "loss_weights": Carry("loss_weights", weights),
    "f_divergence_type": Carry("f_divergence", text),
    "f_alpha_divergence_coef": Carry("f_alpha", number),
    "discopop_tau": Carry("discopop_tau", number),
    "ld_alpha": Carry("ld_alpha", share),
    "rpo_alpha": Carry("sft_weight", number),
    "reference_free": Carry("reference_free", switch),
    "use_weighting": Carry("weighting", switch),
    "router_aux_loss_coef": Leave("the loss has no such term"),
    **{word: Carry(word, number) for word in WEIGHTS},
}

TRL: Mapping[str, Rule] = {
    **TRAINING,
    **MODEL,
    **LOSSES,
    "loss_type": Carry("loss", names),
    **each(Carry("max_length", count), "max_length", "max_seq_length"),
    "packing": Carry("packing", switch),
    "assistant_only_loss": Carry("assistant_only", switch),
    "completion_only_loss": Carry("completion_only", switch),
    "chat_template_path": Carry("chat_template_file", text),
    "truncation_mode": Leave("too long rows are cut at their end", "too_long", off=("keep_start",)),
    **each(Leave("the tokenizer is the model's", "model.template"), "eos_token", "tokenizer_name_or_path"),
    "dataset_kwargs": Leave("what a template writes is tokenised as it stands", matters=False),
    "packing_strategy": Leave("rows are never cut to fill a batch", matters=False),
    **each(MACHINE, "eval_packing", "shuffle_dataset", "dataset_batch_size", "model_init_kwargs", "ignore_bias_buffers"),
    "dataset_name": Carry("dataset", text),
    "dataset_config": Carry("dataset_config", text),
    "dataset_train_split": Carry("train_split", text),
    "dataset_test_split": Carry("test_split", text),
    "dataset_text_field": Carry("text_field", words),
    **each(MACHINE, "dataset_streaming", "streaming"),
    "test_split_size": Carry("test_split_size", share_held_out),
}

MIXTURE = ("datasets",)
ENTRY: Mapping[str, Rule] = {
    "path": Carry("dataset", text),
    "name": Carry("dataset_config", text),
    "split": Carry("train_split", text),
    "columns": Leave("columns are told by the format", "format", matters=False),
    "data_files": Carry("files", texts),
    "data_dir": Leave("give the files by `path`", "path"),
    "fraction": Carry("fraction", share),
}

LOSS_DEFAULTS = {"loss": ("sigmoid",), "beta": 0.1, "label_smoothing": 0.0, "f_alpha": 0.5, "discopop_tau": 0.05}
PREFERENCE_DEFAULTS = {**LOSS_DEFAULTS, "max_length": 1024, "no_dropout": True}
"""trl's own, which the alignment-handbook shares."""


def kind(said: Said) -> str:
    """`sft` or `dpo`, by the keys: trl's files do not name their trainer, but some name their folder by it."""
    if said.gives("loss"):
        return "sft" if set(said.value("loss")) <= OF_SFT.keys() else "dpo"
    for word in ("folder", "hub"):
        other = OTHERS.search(str(said.value(word, "")).lower())
        if other and other[0] == "kto":
            raise refused_kto(said, word)
        if other:
            fact, why = said.facts[word], ": trl's learns the prompt too, unlike `orpo` here" if other[0] == "orpo" else ""
            raise said.error(
                fact.key, fact.line, f"= {fact.value!r} tells of {other[0]}, which cannot be imported{why}; --stage says what it is"
            )
    return "dpo" if said.gives(*PREFERENCE) or "pref" in str(said.value("train_split", "")) else "sft"


def defaults(stage: str, _said: Said) -> Mapping[str, Any]:
    """Trl 1's."""
    lora = {"rank": 16, "alpha": 32, "dropout": 0.05, "targets": ["q_proj", "v_proj"], "kind": "nf4", "double": False}
    common = {**DEFAULTS, **lora, "activation_checkpointing": True, "max_length": 1024, "train_split": "train"}
    if stage == "dpo":
        return {**common, **PREFERENCE_DEFAULTS, "learning_rate": 1e-6}
    return {**common, "learning_rate": 2e-5, "packing": False, "assistant_only": False}


def data(table: Any, said: Said, stage: str) -> Held:
    """One data set by its name, or several under `datasets`."""
    if "datasets" in table:
        sets = (_entry(entry, number, said, stage) for number, entry in enumerate(entries(table, "datasets", said)))
        return Held(tuple(itertools.chain.from_iterable(sets)))
    train = from_hub(
        said.value("dataset", ""), split=said.value("train_split"), config=said.value("dataset_config"), read_as=_format(said, stage)
    )
    test = {**train, "split": said.value("test_split", "test")}
    return Held((train,), (test,))


def _format(said: Said, stage: str) -> dict[str, Any]:
    field = said.value("text_field", "")
    if stage == "sft" and said.gives("text_field") and field:
        return {"format": "text", **({} if field == "text" else {"columns": {"text": field}})}
    return format_of(stage)


def _entry(entry: Any, number: int, said: Said, stage: str) -> list[Portion]:
    own = Said(said.file)
    hear(entry, ENTRY, own, within=f"datasets[{number}].")
    read_as, files = format_of(stage), own.value("files", [])
    part = {"fraction": own.value("fraction")} if own.value("fraction", 1) != 1 else {}
    name = own.value("dataset", "")
    if files:
        found = [from_file(file, read_as) for file in files]
    else:
        found = [from_hub(name, split=own.value("train_split", "train"), config=own.value("dataset_config"), read_as=read_as)]
    own.leave_rest()
    said.left.extend(own.left)
    return [{**portion, **part} for portion in found]


FORMAT = Format(
    name="trl",
    signs=(),
    keys=TRL,
    data_keys=MIXTURE,
    losses=LOSSES_OF_TRL,
    kind=kind,
    defaults=defaults,
    data=data,
)

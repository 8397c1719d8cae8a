"""axolotl's configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zkit_import.axolotl_data import DATA, data
from zkit_import.formats import Format
from zkit_import.losses import AXOLOTL, refused
from zkit_import.readers import (
    choice,
    count,
    dtype,
    names,
    number,
    optimizer,
    schedule,
    share_held_out,
    steps,
    switch,
    switch_or_offload,
    targets,
    text,
    weights,
    when,
    whole,
    words,
)
from zkit_import.said import Carry, Leave, NotHere, Rule, Said, Unfit, each
from zkit_import.training_keys import EVAL_BATCH, HUB, KERNELS, LOGGED, MACHINE, ORDER, RESUME, SAVED, SHARING
from zkit_import.trl import LOSS_DEFAULTS

PER_EPOCH = "is counted in steps here"
ONE_RATE = Leave("all that is trained has one learning rate", "train.learning_rate")


def adapter(value: Any) -> bool:
    """`lora` or `qlora`."""
    if text(value) in ("lora", "qlora"):
        return True
    raise NotHere("there is no such adapter here", near="model.lora")


def preference(value: Any) -> str:
    """`dpo`, `ipo` or `simpo`; of `kto` it is said what to write."""
    if text(value) in ("dpo", "ipo", "simpo", "kto"):
        return str(value)
    why = "; trl's ORPO learns the prompt too" if value == "orpo" else ""
    raise Unfit(f"cannot be imported: of `rl`, dpo, ipo and simpo can{why}")


def beta(value: Any) -> float:
    """Of a table for trl."""
    if isinstance(value, dict) and value.keys() == {"beta"}:
        return number(value["beta"])
    raise Unfit("cannot be imported: of this table `beta` can")


MODEL: Mapping[str, Rule] = {
    "base_model": Carry("weights", text),
    "revision_of_model": Carry("revision", text),
    "adapter": Carry("lora", adapter),
    "lora_r": Carry("rank", count),
    "lora_alpha": Carry("alpha", number),
    "lora_dropout": Carry("dropout", number),
    "lora_target_modules": Carry("modules", targets),
    "lora_target_linear": Carry("all_linear", switch),
    "peft_use_rslora": Carry("rslora", switch),
    "peft_use_dora": Carry("dora", switch),
    "load_in_4bit": Carry("bits4", switch),
    "load_in_8bit": Carry("bits8", switch),
    "lora_model_dir": Leave("an adapter to begin with comes from the stage before"),
    **each(Leave("adapters are of linear layers alone", "model.lora.targets"), "lora_modules_to_save", "lora_target_parameters"),
    **each(Leave("layers are adapted alike", "model.lora"), "peft_layers_to_transform", "lora_rank_pattern", "lora_alpha_pattern"),
    **each(Leave("4 bits are nf4, with constants quantised too", "model.quantize"), "bnb_config_kwargs", "gptq", "peft"),
    **each(
        Leave("adapters begin as peft has them by default"),
        "peft_init_lora_weights",
        "loraplus_lr_ratio",
        "loraplus_lr_embedding",
        "relora",
    ),
    **each(MACHINE, "lora_fan_in_fan_out", "lora_on_cpu", "qlora_sharded_model_loading", "peft_autocast_adapter_dtype"),
    "trust_remote_code": Leave("code of a model is run by repository and commit alone", "model.remote_code"),
    **each(
        Leave("the tokenizer is the model's", "model.weights"), "tokenizer_config", "special_tokens", "tokens", "added_tokens_overrides"
    ),
    **each(
        MACHINE,
        "model_type",
        "tokenizer_type",
        "tokenizer_use_fast",
        "tokenizer_legacy",
        "base_model_config",
        "strict",
        "is_llama_derived_model",
    ),
    **each(MACHINE, "is_mistral_derived_model", "is_qwen_derived_model", "is_falcon_derived_model", "resize_token_embeddings_to_32x"),
    "chat_template": Carry("named_template", text),
    "chat_template_jinja": Carry("chat_template", text),
    "default_system_message": Carry("system", words),
    **each(Leave("a template has no settings", "model.template"), "chat_template_kwargs", "eot_tokens"),
}

TRAINING: Mapping[str, Rule] = {
    **{key: rule for key, rule in SAVED.items() if key != "save_steps"},
    "save_steps": Carry("save_every", steps),
    "micro_batch_size": Carry("batch", count),
    "gradient_accumulation_steps": Carry("accumulation", count),
    "world_size": Carry("devices", count),
    "num_epochs": Carry("epochs", number),
    "max_steps": Carry("steps", count),
    "learning_rate": Carry("learning_rate", number),
    "lr_scheduler": Carry("schedule", schedule),
    "warmup_ratio": Carry("warmup", number),
    "warmup_steps": Carry("warmup_steps", number),
    "optimizer": Carry("optimizer", optimizer),
    **each(
        Leave("optimizers have no such settings", "train.optimizer"), "optim_args", "optim_target_modules", "adam_beta3", "adam_epsilon2"
    ),
    "adam_beta1": Carry("beta1", number),
    "adam_beta2": Carry("beta2", number),
    "adam_epsilon": Carry("epsilon", number),
    "weight_decay": Carry("weight_decay", number),
    "max_grad_norm": Carry("clip", number),
    **each(Leave("schedules have no settings", "train.schedule"), "lr_scheduler_kwargs", "cosine_min_lr_ratio", "cosine_constant_lr_ratio"),
    **each(ONE_RATE, "embedding_lr", "embedding_lr_scale", "lr_groups"),
    "seed": Carry("seed", whole),
    **each(Carry("bf16", switch), "bf16", "bfloat16"),
    "torch_dtype": Carry("dtype", dtype),
    **each(Leave("there is no training in float16", "model.dtype"), "fp16", "float16"),
    "float32": Leave("say so in the preset", "model.dtype"),
    "fp8": Leave("has other kinds", "model.fp8"),
    "gradient_checkpointing": Carry("activation_checkpointing", switch_or_offload),
    "activation_offloading": Carry("activation_offload", switch_or_offload),
    "torch_compile": Carry("compile", switch),
    **each(Carry("noise", number), "neftune_noise_alpha", "noisy_embedding_alpha"),
    "early_stopping_patience": Leave("a stage takes all its steps", "train.keep_best"),
    "unfrozen_parameters": Leave("all weights are trained, or adapters", "model.lora"),
    "eval_strategy": Carry("eval_when", when),
    "eval_steps": Carry("eval_every", steps),
    "evals_per_epoch": Leave(PER_EPOCH, "train.held_out_every"),
    "saves_per_epoch": Leave(PER_EPOCH, "train.checkpoint_every", matters=False),
    "output_dir": Carry("folder", text),
    "hub_model_id": Carry("hub", text),
    **each(
        EVAL_BATCH, "eval_batch_size", "eval_sample_packing", "eval_sequence_len", "eval_table_size", "eval_max_new_tokens", "do_bench_eval"
    ),
    **each(SHARING, "deepspeed", "fsdp", "fsdp_config", "fsdp_version", "ddp", "ddp_timeout", "dp_shard_size", "dp_replicate_size"),
    **each(Carry("context_parallel", count), "sequence_parallel_degree", "context_parallel_size"),
    "tensor_parallel_size": Leave("a layer is computed on one device", "train.context_parallel"),
    **each(HUB, "hub_strategy", "push_dataset_to_hub", "hf_use_auth_token", "hub_revision"),
    **each(
        LOGGED,
        *("logging_steps", "wandb_project", "wandb_entity", "wandb_watch", "wandb_name", "wandb_run_id", "wandb_log_model", "wandb_mode"),
        *("mlflow_experiment_name", "use_tensorboard", "debug", "profiler_steps", "include_tokens_per_second", "loss_watchdog_threshold"),
        *("loss_watchdog_patience", "use_wandb", "use_mlflow", "comet_project_name", "trackio_project_name"),
    ),
    **each(RESUME, "resume_from_checkpoint", "auto_resume_from_checkpoints", "dataset_prepared_path", "overwrite_output_dir"),
    **each(KERNELS, "plugins", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "chunked_cross_entropy", "flash_attn_cross_entropy"),
    **each(KERNELS, *(f"liger_{name}" for name in ("rope", "rms_norm", "glu_activation", "layer_norm", "fused_linear_cross_entropy"))),
    **each(
        MACHINE,
        *("tf32", "flash_attention", "sdp_attention", "xformers_attention", "flex_attention", "eager_attention", "attn_implementation"),
        *("gradient_checkpointing_kwargs", "dataset_processes", "dataset_num_proc", "dataset_keep_in_memory", "dataloader_num_workers"),
        *("dataloader_pin_memory", "dataloader_prefetch_factor", "low_cpu_mem_usage", "device_map", "gc_steps", "sample_packing_bin_size"),
        *(
            "sample_packing_group_size",
            "pad_to_sequence_len",
            "pad_to_multiple_of",
            "batch_flattening",
            "shuffle_merged_datasets",
            "max_memory",
        ),
        *("torch_compile_backend", "remove_unused_columns", "dpo_padding_free", "dpo_use_liger_kernel", "save_first_step"),
    ),
    "group_by_length": ORDER,
    "batch_size": Leave("give micro_batch_size and gradient_accumulation_steps", "train.examples_per_step"),
    **each(Leave("reward models are not trained here"), "reward_model", "process_reward_model"),
}

LOSS: Mapping[str, Rule] = {
    "rl": Carry("rl", preference),
    **each(Carry("beta", number), "rl_beta", "dpo_beta"),
    "trl": Carry("beta", beta),
    "dpo_label_smoothing": Carry("label_smoothing", number),
    "dpo_loss_type": Carry("loss", names),
    "dpo_loss_weights": Carry("loss_weights", weights),
    "dpo_use_weighting": Carry("weighting", switch),
    "rpo_alpha": Carry("sft_weight", number),
    "cpo_alpha": Carry("cpo_alpha", number),
    "simpo_gamma": Carry("simpo_gamma", number),
    "kto_desirable_weight": Carry("desirable_weight", number),
    "kto_undesirable_weight": Carry("undesirable_weight", number),
    "precompute_ref_log_probs": Carry("precomputed", switch),
    "sequence_len": Carry("max_length", count),
    "max_prompt_len": Carry("prompt_length", count),
    "excess_length_strategy": Carry("too_long", choice({"drop": "drop", "truncate": "cut", "raise": "refuse"}, "way", near="too_long")),
    "sample_packing": Carry("packing", switch),
    "train_on_inputs": Leave("the loss is on the assistant's tokens", "objective"),
    "val_set_size": Carry("val_set_size", share_held_out),
    "dataset_exact_deduplication": Leave("duplicates are counted; a filter removes near ones", "filters"),
}

def kind(said: Said) -> str:
    """`sft` or `dpo`."""
    return "dpo" if said.gives("rl", "loss") else "sft"


def defaults(stage: str, said: Said) -> Mapping[str, Any]:
    """Axolotl's."""
    common = {
        "batch": 1,
        "accumulation": 1,
        "epochs": 1.0,
        "schedule": "cosine",
        "optimizer": "adamw",
        "clip": 1.0,
        "seed": 42,
        "warmup": 0.03,
        "max_length": 512,
        "too_long": "drop",
        "double": True,
        "kind": "nf4",
        "dropout": 0.0,
        "save_when": "epoch",
        "targets": _targets(said),
        "eval_when": "epoch",
    }
    return {**common, **(_of_pairs(said) if stage == "dpo" else {"packing": False, "assistant_only": True})}


def _of_pairs(said: Said) -> Mapping[str, Any]:
    """trl's; `ipo` and `simpo` are losses by themselves, the latter CPOTrainer's with a term for the chosen replies."""
    rl = said.value("rl", "dpo")
    if rl != "dpo" and said.gives("loss"):
        raise refused(said, f"`rl: {rl}` says it too")
    if rl == "simpo" and not said.gives("simpo_gamma"):
        raise refused(said, "`simpo_gamma` is missing", "rl")
    own = {"loss": (rl,), "sft_weight": said.value("cpo_alpha", 1.0)} if rl == "simpo" else {"loss": ("ipo" if rl == "ipo" else "sigmoid",)}
    return {**LOSS_DEFAULTS, **own, "no_dropout": True}


def _targets(said: Said) -> str | list[str]:
    """`lora_target_linear` adds all linear layers to those named."""
    modules: str | list[str] = said.value("modules", "all-linear")
    return "all-linear" if said.value("all_linear") else modules


FORMAT = Format(
    name="axolotl",
    signs=("base_model", "micro_batch_size", "sequence_len", "adapter", "sample_packing", "rl", "num_epochs", "lr_scheduler", "optimizer"),
    keys={**MODEL, **TRAINING, **LOSS},
    data_keys=DATA,
    losses=AXOLOTL,
    kind=kind,
    defaults=defaults,
    data=data,
)

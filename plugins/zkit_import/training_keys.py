"""The keys of transformers' TrainingArguments, which trl, the alignment-handbook and LLaMA-Factory share."""

from __future__ import annotations

from collections.abc import Mapping

from zkit_import.readers import count, number, optimizer, schedule, steps, switch, text, when, whole
from zkit_import.said import Carry, Leave, Rule, each

LOGGED = Leave("every step is in metrics.jsonl, and trackers are plugins", matters=False)
HUB = Leave("nothing is uploaded; the model's folder is ready for it", matters=False)
MACHINE = Leave("the machine's affair, which changes no result", matters=False)
SHARING = Leave("whether devices share the model out is chosen by the plan", "train.sharding", matters=False)
EVAL_BATCH = Leave("held-out data is packed as training data is", "train.tokens_per_batch", matters=False)
RESUME = Leave("a run is continued by the same command", matters=False)
COLUMNS = Leave("a source reads the columns that it needs", matters=False)
KERNELS = Leave("kernels are chosen by what is installed", "model.kernels", matters=False)
ORDER = Leave("rows are packed without padding, whatever their order", matters=False)

SAVED = {
    "save_strategy": Carry("save_when", when),
    "save_steps": Carry("save_every", steps),
    "save_total_limit": Carry("keep", count),
    "load_best_model_at_end": Leave("the last model is the result", "train.keep_best"),
    **each(Leave("names the best checkpoint by", "train.keep_best", matters=False), "metric_for_best_model", "greater_is_better"),
    **each(MACHINE, "save_only_model", "save_on_each_node", "save_safetensors", "enable_jit_checkpoint"),
}

TRAINING: Mapping[str, Rule] = {
    "per_device_train_batch_size": Carry("batch", count),
    "gradient_accumulation_steps": Carry("accumulation", count),
    "num_train_epochs": Carry("epochs", number),
    "max_steps": Carry("steps", whole),
    "learning_rate": Carry("learning_rate", number),
    "lr_scheduler_type": Carry("schedule", schedule),
    "lr_scheduler_kwargs": Leave("schedules have no settings", "train.schedule"),
    "warmup_ratio": Carry("warmup", number),
    "warmup_steps": Carry("warmup_steps", number),
    "optim": Carry("optimizer", optimizer),
    **each(Leave("optimizers have no such settings", "train.optimizer"), "optim_args", "optim_target_modules"),
    "adam_beta1": Carry("beta1", number),
    "adam_beta2": Carry("beta2", number),
    "adam_epsilon": Carry("epsilon", number),
    "weight_decay": Carry("weight_decay", number),
    "max_grad_norm": Carry("clip", number),
    "seed": Carry("seed", whole),
    "data_seed": Leave("order and dropout have one seed", "seed"),
    "bf16": Carry("bf16", switch),
    "fp16": Leave("there is no training in float16", "model.dtype"),
    **each(Carry("activation_checkpointing", switch), "gradient_checkpointing", "activation_checkpointing"),
    "activation_offloading": Carry("activation_offload", switch),
    "torch_compile": Carry("compile", switch),
    **each(Carry("eval_when", when), "eval_strategy", "evaluation_strategy"),
    "eval_steps": Carry("eval_every", steps),
    **SAVED,
    "output_dir": Carry("folder", text),
    "hub_model_id": Carry("hub", text),
    "neftune_noise_alpha": Carry("noise", number),
    "label_smoothing_factor": Carry("smoothing", number),
    **each(Leave("says that there is an evaluation, which held-out data says here", "held_out", matters=False), "do_eval", "eval_on_start"),
    **each(COLUMNS, "remove_unused_columns", "no_remove_unused_columns"),
    **each(ORDER, "group_by_length", "train_sampling_strategy", "length_column_name"),
    **each(EVAL_BATCH, "prediction_loss_only", "batch_eval_metrics", "include_for_metrics", "eval_do_concat_batches"),
    **each(EVAL_BATCH, "eval_use_gather_object", "do_predict", "label_names"),
    **each(EVAL_BATCH, "per_device_eval_batch_size", "eval_accumulation_steps", "eval_delay", "bf16_full_eval", "fp16_full_eval"),
    **each(RESUME, "resume_from_checkpoint", "ignore_data_skip", "overwrite_output_dir"),
    **each(KERNELS, "use_liger_kernel", "liger_kernel_config"),
    **each(SHARING, "deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"),
    **each(
        HUB,
        *("push_to_hub", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision", "hub_model_revision"),
    ),
    **each(
        LOGGED,
        *("logging_steps", "logging_strategy", "logging_first_step", "logging_dir", "logging_nan_inf_filter", "report_to", "run_name"),
        *("log_level", "log_level_replica", "log_on_each_node", "disable_tqdm", "include_tokens_per_second", "project"),
        *(
            "include_num_input_tokens_seen",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
            "wandb_project",
            "wandb_entity",
        ),
    ),
    **each(
        MACHINE,
        *("do_train", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "tf32"),
        *("torch_compile_backend", "torch_compile_mode", "dataloader_multiprocessing_context"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
        *("dataloader_drop_last", "dataloader_in_order", "ddp_timeout", "ddp_backend", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
        *("ddp_find_unused_parameters", "ddp_static_graph", "average_tokens_across_devices", "auto_find_batch_size", "use_cache"),
        *("torch_empty_cache_steps", "skip_memory_metrics", "local_rank", "full_determinism", "use_cpu", "debug"),
    ),
}
"""What of it is carried over, and why the rest is not."""

DEFAULTS = {
    "batch": 8,
    "accumulation": 1,
    "epochs": 3.0,
    "learning_rate": 5e-5,
    "schedule": "linear",
    "optimizer": "adamw",
    "clip": 1.0,
    "seed": 42,
    "eval_when": "no",
    "save_when": "steps",
    "save_every": 500,
}
"""transformers' own."""

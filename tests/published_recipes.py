"""The published recipes of the alignment-handbook as facts, and as each of four programs would have them written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
CHAT, PAIRS = ("HuggingFaceH4/ultrachat_200k", "sft"), ("HuggingFaceH4/ultrafeedback_binarized", "prefs")


@dataclass(frozen=True)
class Recipe:
    """One column of the tables."""

    name: str
    batch: int
    accumulation: int
    rate: float
    schedule: str = "cosine"
    warmup: float = 0.1
    epochs: int = 1
    length: int = 2048
    beta: float | None = None
    loss: str = "sigmoid"
    optimizer: str = "adamw_torch"
    lora: tuple[int, int, float, tuple[str, ...]] | None = None
    bits4: bool = False
    devices: int = 8
    weights: str = "mistralai/Mistral-7B-v0.1"
    data: tuple[str, str] = CHAT
    packed: bool = True

    @property
    def rows(self) -> int:
        return self.batch * self.accumulation * self.devices


def sft(name: str, batch: int, accumulation: int, rate: float, **others: Any) -> Recipe:
    return Recipe(f"{name}", batch, accumulation, rate, **others)


def dpo(name: str, batch: int, accumulation: int, rate: float, beta: float, **others: Any) -> Recipe:
    start = name.replace("dpo", "sft").rsplit("-v", 1)[0]
    given = {"length": 1024, "data": PAIRS, "packed": False, "weights": f"alignment-handbook/zephyr-7b-{start}", **others}
    return Recipe(f"{name}", batch, accumulation, rate, beta=beta, **given)


RECIPES = (
    sft("sft-full-v0.2.0", 32, 2, 2e-5, warmup=0),
    sft("sft-full-v0.3.0", 16, 1, 2e-5),
    sft("sft-lora-v0.2.0", 4, 128, 2e-5, warmup=0, lora=(64, 16, 0.1, ATTENTION), devices=1),
    sft("sft-qlora-v0.3.0", 4, 2, 2e-4, lora=(16, 16, 0.05, LINEAR), bits4=True),
    dpo("dpo-full-v0.2.0", 8, 1, 5e-7, 0.1, schedule="linear", epochs=3, optimizer="rmsprop"),
    dpo("dpo-full-v0.3.0", 8, 2, 5e-7, 0.01),
    dpo("dpo-lora-v0.2.0", 2, 32, 5e-7, 0.1, schedule="linear", epochs=3, optimizer="rmsprop", lora=(64, 16, 0.1, ATTENTION), devices=1),
    dpo("dpo-qlora-v0.3.0", 4, 4, 5e-6, 0.01, optimizer="paged_adamw_32bit", lora=(128, 128, 0.05, LINEAR), bits4=True),
    sft("gemma-sft", 4, 4, 2e-5, epochs=3, weights="google/gemma-7b", data=("HuggingFaceH4/deita-10k-v0-sft", "sft")),
    dpo("gemma-dpo", 2, 8, 5e-7, 0.05, epochs=2, data=("argilla/dpo-mix-7k", "prefs")),
    dpo("constitutional-dpo", 2, 1, 5e-7, 0.1, epochs=3, schedule="linear", optimizer="rmsprop"),
    dpo("smollm2-dpo", 2, 8, 1e-6, 0.5, epochs=3),
    dpo("scan-ipo", 8, 2, 5e-7, 0.01, loss="ipo"),
)
"""Two generations of zephyr-7b-beta; later recipes; the scan of losses."""


def as_handbook(recipe: Recipe) -> dict[str, Any]:
    name, kind = recipe.data
    data = {"dataset_mixer": {name: 1.0}, "dataset_splits": [f"train_{kind}", f"test_{kind}"], "preprocessing_num_workers": 12}
    length = {"max_seq_length": recipe.length} if recipe.beta is None else {"max_length": recipe.length, "max_prompt_length": 512}
    return {**_like_trl(recipe), **data, **length}


def as_trl(recipe: Recipe) -> dict[str, Any]:
    name, kind = recipe.data
    data = {"dataset_name": name, "dataset_train_split": f"train_{kind}", "dataset_test_split": f"test_{kind}", "max_length": recipe.length}
    return {**_like_trl(recipe), **data, **({"packing": recipe.packed} if recipe.beta is None else {})}


def _like_trl(recipe: Recipe) -> dict[str, Any]:
    model = {"model_name_or_path": recipe.weights, "torch_dtype": "bfloat16", "attn_implementation": "flash_attention_2"}
    loss = {} if recipe.beta is None else {"beta": recipe.beta, "loss_type": recipe.loss}
    lora = {}
    if recipe.lora is not None:
        rank, alpha, dropout, targets = recipe.lora
        lora = {"use_peft": True, "lora_r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "lora_target_modules": list(targets)}
        lora["load_in_4bit"] = recipe.bits4
    return {**model, **loss, **lora, **_like_transformers(recipe), "logging_steps": 10}


def _like_transformers(recipe: Recipe) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "learning_rate": recipe.rate,
        "lr_scheduler_type": recipe.schedule,
        "num_train_epochs": recipe.epochs,
        "optim": recipe.optimizer,
        "output_dir": f"data/{recipe.name}",
        "bf16": True,
        "gradient_checkpointing": True,
        "eval_strategy": "steps",
        "eval_steps": 100,
        "seed": 42,
        **({"warmup_ratio": recipe.warmup} if recipe.warmup else {}),
    }


def as_axolotl(recipe: Recipe) -> dict[str, Any]:
    (name, kind), preference = recipe.data, recipe.beta is not None
    written = "chat_template.default" if preference else "chat_template"
    data = {
        "datasets": [{"path": name, "split": f"train_{kind}", "type": written}],
        "test_datasets": [{"path": name, "split": f"test_{kind}", "type": written}],
    }
    loss = {"rl": "ipo" if recipe.loss == "ipo" else "dpo", "rl_beta": recipe.beta} if preference else {"sample_packing": recipe.packed}
    lora = {}
    if recipe.lora is not None:
        rank, alpha, dropout, targets = recipe.lora
        lora = {"adapter": "qlora" if recipe.bits4 else "lora", "load_in_4bit": recipe.bits4, "lora_r": rank, "lora_alpha": alpha}
        lora |= {"lora_dropout": dropout, "lora_target_modules": list(targets)}
    return {
        "base_model": recipe.weights,
        "sequence_len": recipe.length,
        "excess_length_strategy": "truncate",
        "bf16": "auto",
        "micro_batch_size": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "num_epochs": recipe.epochs,
        "learning_rate": recipe.rate,
        "lr_scheduler": recipe.schedule,
        "warmup_ratio": recipe.warmup,
        "optimizer": recipe.optimizer,
        "output_dir": f"data/{recipe.name}",
        "gradient_checkpointing": True,
        "flash_attention": True,
        "seed": 42,
        "eval_steps": 100,
        "eval_strategy": "steps",
        "chat_template": "tokenizer_default",
        **data,
        **loss,
        **lora,
    }


def as_llama_factory(recipe: Recipe) -> dict[str, Any]:
    preference = recipe.beta is not None
    loss = (
        {"stage": "dpo", "pref_beta": recipe.beta, "pref_loss": recipe.loss} if preference else {"stage": "sft", "packing": recipe.packed}
    )
    lora: dict[str, Any] = {"finetuning_type": "full"}
    if recipe.lora is not None:
        rank, alpha, dropout, targets = recipe.lora
        lora = {
            "finetuning_type": "lora",
            "lora_rank": rank,
            "lora_alpha": alpha,
            "lora_dropout": dropout,
            "lora_target": ",".join(targets),
        }
        lora |= {"quantization_bit": 4} if recipe.bits4 else {}
    data = {"dataset": f"{recipe.name}-train", "eval_dataset": f"{recipe.name}-test", "template": "default", "cutoff_len": recipe.length}
    return {"model_name_or_path": recipe.weights, **_like_transformers(recipe), **loss, **lora, **data}


def data_sets(recipe: Recipe) -> dict[str, Any]:
    """What LLaMA-Factory's `dataset_info.json` says of them."""
    (name, kind), preference = recipe.data, recipe.beta is not None
    tags = {} if preference else {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": {"role_tag": "role"}}
    ranking = {"ranking": True, "columns": {"prompt": "prompt"}} if preference else {}
    common = {"hf_hub_url": name, **tags, **ranking}
    return {f"{recipe.name}-{part}": {**common, "split": f"{part}_{kind}"} for part in ("train", "test")}


WRITERS = {"trl": as_trl, "alignment-handbook": as_handbook, "axolotl": as_axolotl, "llama-factory": as_llama_factory}


def written(recipe: Recipe, program: str) -> str:
    """The file, as that program would have it."""
    return yaml.safe_dump(WRITERS[program](recipe), sort_keys=False)

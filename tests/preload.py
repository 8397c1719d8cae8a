"""What runs, their launchers and their ranks import on the way, so that forked ones need not."""

import gc
import importlib

NAMES = (
    "bitsandbytes",
    "datasets",
    "datasketch",
    "forked",
    "peft",
    "peft.tuners.lora",
    "pydantic",
    "rich.progress",
    "safetensors.torch",
    "tomli_w",
    "torch._subclasses.fake_tensor",
    "torch.distributed.elastic.agent.server.local_elastic_agent",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.utils.flop_counter",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.mistral.modeling_mistral",
    "transformers.generation",
    "zephyr_kit.cli",
    "zephyr_kit.pipeline",
    "zephyr_kit.report",
    "zephyr_kit.smoke",
    "zephyr_kit.cli.tell",
    "zkit_attentions.segments",
    "zkit_launchers.guard",
    "zkit_mistral.loading",
    "zkit_mistral.skeleton",
    "zkit_optimizers.pages",
    "zkit_preference.dpo",
    "zkit_preference.ipo",
    "zkit_sft.objective",
    "zkit_sources.files",
)
for name in NAMES:
    importlib.import_module(name)

gc.freeze()  # what is collected in a fork is its own

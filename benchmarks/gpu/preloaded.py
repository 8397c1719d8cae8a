"""What every run imports, imported once: the process that has done so is forked for each run, and must not have touched the GPU.

bitsandbytes asks the GPU what it is when it is imported, and peft imports it with itself, for a function that is not used
here. A hollow module stands in for it meanwhile, so that each run imports the real one.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from importlib import import_module
from types import ModuleType

NAME = "bitsandbytes"
MODULES = (
    *("torch", "accelerate", "datasets", "peft", "transformers.trainer", "transformers.models.mistral.modeling_mistral"),
    *("trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "zephyr_kit.training", "zkit_mistral.loading"),
)


def _import_all() -> None:
    for name in MODULES:
        import_module(name)
    with suppress(ImportError):
        import_module("liger_kernel.transformers")


def _without_asking() -> None:
    spec = importlib.util.find_spec(NAME)
    if spec is not None and NAME not in sys.modules:
        hollow = ModuleType(NAME)
        hollow.__spec__ = spec
        sys.modules[NAME] = hollow
    try:
        _import_all()
    finally:
        if not hasattr(sys.modules.get(NAME), "__file__"):
            sys.modules.pop(NAME, None)


if __name__ != "__main__":
    _without_asking()

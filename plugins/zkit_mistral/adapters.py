"""LoRA adapters on a model of transformers: a trained one, and a frozen one under it or beside it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit import ZkitError
from zephyr_kit.artifacts import check_folder
from zephyr_kit.config import suggest
from zephyr_kit.records import read_json
from zephyr_kit.weights import MEND

if TYPE_CHECKING:
    from zephyr_kit.protocols import Start
    from zkit_mistral.settings import Lora

TRAINED, EARLIER, REFERENCE, MERGED = "default", "earlier", "reference", "merged"
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
OWN_KEYS = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
    *("base_model_name_or_path", "inference_mode", "peft_version", "revision"),
)
"""Of an adapter's configuration, what differs between adapters that this program writes."""
NO_DORA = "[model.lora] dora = true: an adapter with DoRA cannot be added to another; let the later stage go on with the earlier adapter"


@dataclass(frozen=True)
class Adapters:
    """The adapters of a peft model, by the parts they play."""

    peft: Any
    under: tuple[str, ...] = ()
    """Frozen adapters that the trained one stands on; they are also the reference."""
    continued_from: Path | None = None
    """The folder that the trained adapter was read from, when training goes on with it."""

    def keep_reference(self) -> None:
        """Read the adapter that is continued once more, frozen, to be the reference."""
        if self.continued_from is not None and REFERENCE not in self.peft.peft_config:
            _read(self.peft, self.continued_from, REFERENCE)
            self.use((*self.under, TRAINED))

    @property
    def reference(self) -> tuple[str, ...]:
        """The adapters that make up the reference."""
        return self.under if self.continued_from is None else (REFERENCE,)

    @contextmanager
    def active(self, names: Sequence[str]) -> Iterator[None]:
        """Switch to these adapters, and back whatever happens."""
        before = {layer: (layer._active_adapter, layer._disable_adapters) for layer in self._layers()}
        try:
            self.use(names)
            yield
        finally:
            for layer, state in before.items():
                layer._active_adapter, layer._disable_adapters = state

    def use(self, names: Sequence[str]) -> None:
        """Make these adapters, added up, the active ones."""
        # Not peft's set_adapter, which also makes every active adapter trainable.
        for layer in self._layers():
            # With none, they are switched off besides: kernels that compute the adapter themselves look for a first one.
            layer._active_adapter, layer._disable_adapters = list(names), not names

    def save(self, folder: Path) -> None:
        """Write one adapter that says what all active ones do, in peft's format."""
        if self.under:
            self._save_merged(folder)
        else:
            self.peft.save_pretrained(folder, selected_adapters=[TRAINED])
        _sort_targets(folder / CONFIG_FILE)

    def _save_merged(self, folder: Path) -> None:
        names = [*self.under, TRAINED]
        self.peft.add_weighted_adapter(names, [1.0] * len(names), MERGED, combination_type="cat")
        # Each one's scale is in its matrices now; peft would have a loader scale by the root of the rank again.
        self.peft.peft_config[MERGED].use_rslora = False
        try:
            self.peft.save_pretrained(folder, selected_adapters=[MERGED])
        finally:
            self.peft.delete_adapter(MERGED)
            self.use(names)
            self._train_only(TRAINED)
        for file in (folder / MERGED).iterdir():
            file.replace(folder / file.name)
        shutil.rmtree(folder / MERGED)

    def _train_only(self, name: str) -> None:
        for key, parameter in self.peft.named_parameters():
            parameter.requires_grad_("lora_" in key and f".{name}." in f"{key}.")

    def _layers(self) -> Iterator[Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return (module for module in self.peft.modules() if isinstance(module, BaseTunerLayer))


def is_adapter(folder: Path | None) -> bool:
    """Whether a folder holds an adapter, not whole weights."""
    return folder is not None and (folder / CONFIG_FILE).exists()


def base_of(folder: Path) -> str:
    """The weights that an adapter belongs to."""
    return str(read_json(folder / CONFIG_FILE, MEND).get("base_model_name_or_path"))


def check_adapter(folder: Path) -> None:
    """Refuse an adapter that is more than two matrices for each layer.

    peft's configuration can name modules to import, tokenizers to fetch and files to read: whatever this program would
    not have written itself is not passed on to it.
    """
    from peft import LoraConfig

    check_folder(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ZkitError(f"{folder}: holds no {WEIGHTS_FILE}")
    written = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    usual = {**LoraConfig().to_dict(), "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    for key, value in written.items():
        if key not in OWN_KEYS and (value or None) != (usual.get(key) or None):
            told = f"{key} = {json.dumps(value)[:80]}"
            raise ZkitError(f"{folder / CONFIG_FILE}: {told} is nothing that an adapter of ours has; it is not read")
    if not isinstance(written.get("target_modules"), list):
        raise ZkitError(f"{folder / CONFIG_FILE}: target_modules is no list of layers")


def new_adapters(model: Any, lora: Lora) -> Adapters:
    """A new adapter on the bare model."""
    from peft import get_peft_model

    _check_targets(model, lora)
    return Adapters(in_type_of_model(get_peft_model(model, _config(lora), adapter_name=TRAINED)))


def read_adapters(model: Any, folder: Path) -> Adapters:
    """The adapter of an earlier stage, to be used and not trained."""
    peft = _opened(model, folder, TRAINED, train=False)
    return Adapters(in_type_of_model(peft), continued_from=folder)


def continued_adapters(model: Any, folder: Path, lora: Lora) -> Adapters:
    """The adapter of an earlier stage, to go on with; the preset must describe the same one."""
    peft = _opened(model, folder, TRAINED, train=True)
    found = peft.peft_config[TRAINED]
    pairs = {
        "rank": (found.r, lora.rank),
        "alpha": (found.lora_alpha, lora.alpha),
        "dropout": (found.lora_dropout, lora.dropout),
        "rslora": (found.use_rslora, lora.rslora),
        "dora": (found.use_dora, lora.dora),
    }
    for name, (left, wanted) in pairs.items():
        if left != wanted:
            raise ZkitError(
                f"the stage goes on with the adapter of the stage before, which has {name} = {left}, but [model.lora] says {wanted}; "
                "set `model.lora` in the stage to bring an adapter of its own"
            )
    return Adapters(in_type_of_model(peft), continued_from=folder)


def stacked_adapters(model: Any, folder: Path, lora: Lora) -> Adapters:
    """A new adapter on top of the frozen one of an earlier stage."""
    _check_targets(model, lora)
    return _on_top(_opened(model, folder, EARLIER, train=False), lora)


def stack(model: Any, lora: Lora, *, earlier: Lora) -> Adapters:
    """The same on a frozen adapter that is not there yet."""
    from peft import get_peft_model

    _check_targets(model, lora)
    return _on_top(get_peft_model(model, _config(earlier), adapter_name=EARLIER), lora)


def earlier_lora(start: Start) -> Lora | None:
    """The adapter that the stage starts from; None if it starts from whole weights."""
    found: Lora | None = None
    for backend, changed in start.earlier:
        lora: Lora | None = getattr(backend, "lora", None)
        if lora is not None and found is None:
            found = lora
        elif lora is not None and found is not None and "lora" in changed:
            # Adapters that stand on each other are saved as one.
            found = replace(lora, rank=found.rank + lora.rank)
    return found


def copy_frozen(adapters: Adapters, name: str) -> None:
    """Add a copy of the trained adapter that is not trained itself."""
    for layer in adapters._layers():
        for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
            by_adapter = getattr(layer, attribute)
            if TRAINED in by_adapter:
                by_adapter[name] = copy.deepcopy(by_adapter[TRAINED])
    for key, parameter in adapters.peft.named_parameters():
        if f".{name}." in f"{key}.":
            parameter.requires_grad_(requires_grad=False)
    _silence_dropout(adapters.peft, name)


def _on_top(peft: Any, lora: Lora) -> Adapters:
    if lora.dora or peft.peft_config[EARLIER].use_dora:
        raise ZkitError(NO_DORA)
    peft.add_adapter(TRAINED, _config(lora))
    adapters = Adapters(in_type_of_model(peft), under=(EARLIER,))
    _silence_dropout(peft, EARLIER)
    adapters.use((EARLIER, TRAINED))
    adapters._train_only(TRAINED)
    return adapters


def _check_targets(model: Any, lora: Lora) -> None:
    """Refuse targets that peft passes over in silence, and the head, whose adapter the fused head would."""
    if isinstance(lora.targets, str):
        return
    from torch import nn

    names = [name for name, _ in model.named_modules()]
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != head}
    for target in lora.targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise ZkitError(f"[model.lora] targets: {type(model).__name__} has no layer {target!r}{suggest(target, linear)}")
        if f".{head}".endswith(f".{target}"):
            raise ZkitError(f"[model.lora] targets: {target!r} is the head, which is not adapted; there is {', '.join(sorted(linear))}")
    if not lora.targets:
        raise ZkitError(f"[model.lora] targets: names no layer; there is {', '.join(sorted(linear))}")


def _opened(model: Any, folder: Path, name: str, *, train: bool) -> Any:
    from peft import PeftModel

    check_adapter(folder)
    return PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=train)


def _read(peft: Any, folder: Path, name: str) -> None:
    check_adapter(folder)
    peft.load_adapter(str(folder), adapter_name=name, is_trainable=False)
    _silence_dropout(in_type_of_model(peft), name)


def in_type_of_model(peft: Any) -> Any:
    """Let adapters compute as the layers that they stand on, as under autocast; the optimizer has float32 masters of them.

    peft makes them float32, and each layer would then keep its input once more in float32, and
    multiply in it. DoRA's stay so: a magnitude in bfloat16 would move its whole row by a rounding.
    """
    if not any(config.use_dora for config in peft.peft_config.values()):
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(peft.get_base_model().dtype)
    return peft


def _sort_targets(file: Path) -> None:
    """Write the targets in order: to peft they are a set, which each process lists in another."""
    config = json.loads(file.read_text("utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")


def _silence_dropout(peft: Any, name: str) -> None:
    """A frozen adapter answers the same each time."""
    from torch import nn

    for key, module in peft.named_modules():
        if key.endswith(f"lora_dropout.{name}") and isinstance(module, nn.Dropout):
            module.p = 0.0


def _config(lora: Lora) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )

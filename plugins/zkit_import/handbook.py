"""The alignment-handbook's recipes: trl's keys, data sets mixed by name, and a chat template of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zkit_import import trl
from zkit_import.data import Held, Portion, from_hub
from zkit_import.formats import Format
from zkit_import.losses import OLDER
from zkit_import.readers import share, share_held_out, switch, text, texts
from zkit_import.said import Carry, Leave, Rule, Said, Unfit, entries, hear

KEYS: Mapping[str, Rule] = {
    **trl.TRL,
    "chat_template": Carry("chat_template", text),
    "dataset_splits": Carry("splits", texts),
    "dataset_configs": Carry("configs", texts),
    "auto_insert_empty_system_msg": Carry("empty_system", switch),
    "truncation_side": Leave("too long rows are cut at their end", "too_long", matters=False),
    "text_column": Leave("texts are rendered by the chat template", matters=False),
}
MIXER, MIXTURE = "dataset_mixer", "dataset_mixture"
IN_MIXTURE: Mapping[str, Rule] = {
    "seed": Leave("the order follows from the preset's seed", "seed", matters=False),
    "test_split_size": Carry("test_split_size", share_held_out),
}
ENTRY: Mapping[str, Rule] = {
    "id": Carry("dataset", text),
    "config": Carry("config", text),
    "split": Carry("split", text),
    "columns": Leave("columns are told by the format", "format", matters=False),
    "weight": Carry("weight", share),
}


def kind(said: Said) -> str:
    """`sft` or `dpo`."""
    return "dpo" if trl.kind(said) == "dpo" or any("pref" in split for split in said.value("splits", ())) else "sft"


def defaults(stage: str, said: Said) -> Mapping[str, Any]:
    """trl's, and those of the scripts: up to v0.3.0, SFT is packed, and the template is Zephyr's with an empty system turn."""
    common = trl.defaults(stage, said)
    if not said.gives("mixer"):
        return common
    system = {"system": ""} if said.value("empty_system", otherwise=True) else {}
    own = {"optimizer": "rmsprop"} if stage == "dpo" else {"packing": True, "max_length": 2048}
    return {**common, "template": "zephyr", **system, **own}


def data(table: Any, said: Said, stage: str) -> Held:
    """`dataset_mixer` with its splits, `dataset_mixture`, or one by its name as trl has it."""
    read_as = {"format": "preference" if stage == "dpo" else "messages"}
    if MIXTURE in table:
        mixture = table[MIXTURE]
        if not isinstance(mixture, dict):
            raise said.error(MIXTURE, table.line(MIXTURE), f"= {mixture!r}: should be a table with `datasets`")
        hear(mixture, IN_MIXTURE, said, within=f"{MIXTURE}.", known=("datasets",))
        return Held(tuple(_entry(entry, number, said, read_as) for number, entry in enumerate(entries(mixture, "datasets", said))))
    if "mixer" not in said.facts:
        return trl.data(table, said, stage)
    mixer, splits = said.value("mixer"), said.value("splits", ["train", "test"])
    configs = said.value("configs") or [None] * len(mixer)
    if len(configs) != len(mixer):
        fact = said.facts["configs"]
        raise said.error(fact.key, fact.line, f"names {len(configs)} configurations, but {MIXER} has {len(mixer)} data sets")
    sets = [
        (from_hub(name, split=split, config=config, read_as=read_as), part, split)
        for (name, part), config in zip(mixer.items(), configs, strict=True)
        for split in splits
        if part > 0
    ]
    train = tuple(_share(portion, part) for portion, part, split in sets if "test" not in split)
    return Held(train, tuple(portion for portion, _, split in sets if "test" in split))


def _entry(entry: Any, number: int, said: Said, read_as: Portion) -> Portion:
    own = Said(said.file)
    hear(entry, ENTRY, own, within=f"{MIXTURE}.datasets[{number}].")
    portion = from_hub(own.value("dataset", ""), split=own.value("split", "train"), config=own.value("config"), read_as=read_as)
    portion = _share(portion, own.value("weight", 1.0))
    own.leave_rest()
    said.left.extend(own.left)
    return portion


def _share(portion: Portion, part: float) -> Portion:
    return portion if part == 1 else {**portion, "fraction": part}


def shares(value: Any) -> dict[str, float]:
    """Data sets, each with the share of its rows that is taken."""
    if not isinstance(value, dict):
        raise Unfit("should be data sets, each with the share of its rows")
    return {str(name): share(part) for name, part in value.items()}


FORMAT = Format(
    name="alignment-handbook",
    signs=("dataset_mixer", "dataset_mixture", "dataset_splits", "chat_template"),
    keys={**KEYS, MIXER: Carry("mixer", shares)},
    data_keys=(MIXTURE,),
    losses=OLDER,
    kind=kind,
    defaults=defaults,
    data=data,
)

"""The data sets of axolotl's configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zkit_import.data import Held, Portion, from_file, from_hub
from zkit_import.readers import text, texts
from zkit_import.said import Carry, Leave, Rule, Said, entries, hear
from zkit_import.training_keys import MACHINE

DATA = ("datasets", "test_datasets")

ENTRY: Mapping[str, Rule] = {
    "path": Carry("dataset", text),
    "name": Carry("config", text),
    "split": Carry("split", text),
    "revision": Carry("revision", text),
    "data_files": Carry("files", lambda value: texts(value if isinstance(value, list) else [value])),
    "ds_type": MACHINE,
    "type": Carry("type", lambda value: value),
    "field_messages": Carry("messages", text),
    "field_chosen": Carry("chosen", text),
    "field_rejected": Carry("rejected", text),
    "chat_template": Leave("one template for all data", "model.template"),
    "message_property_mappings": Leave("turns have `role` and `content`, or `from` and `value`", "format"),
    "roles_to_train": Leave("the assistant's turns are trained", off=(["assistant"],)),
    "train_on_eos": Leave("the end of each trained turn is trained", off=("turn",)),
    "shards": Leave("take a share of the rows instead", "fraction"),
    "field": Leave("other columns are mapped", "columns"),
}
TYPES = {"alpaca": "alpaca", "completion": "text", "sharegpt": "conversations"}


def data(table: Any, said: Said, stage: str) -> Held:
    """`datasets`, and `test_datasets`."""
    return Held(*(tuple(_all(table, key, said, stage)) for key in DATA))


def _all(table: Any, key: str, said: Said, stage: str) -> Iterator[Portion]:
    for place, entry in enumerate(entries(table, key, said)):
        yield from _portions(entry, f"{key}[{place}].", said, stage)


def _portions(entry: Any, within: str, said: Said, stage: str) -> list[Portion]:
    own = Said(said.file)
    hear(entry, ENTRY, own, within=within)
    read_as, name, files = _read_as(own, stage), own.value("dataset", ""), own.value("files", [])
    if files or name.endswith((".json", ".jsonl", ".csv", ".parquet", ".gz")):
        found = [from_file(file, read_as) for file in files or [name]]
    else:
        revision = {} if own.value("revision") is None else {"revision": own.value("revision")}
        found = [{**from_hub(name, split=own.value("split", "train"), config=own.value("config"), read_as=read_as), **revision}]
    own.leave_rest()
    said.left.extend(own.left)
    return found


def _read_as(own: Said, stage: str) -> Portion:
    named = str(own.value("type", "chat_template")).partition(".")[0]
    read_as = "preference" if stage == "dpo" else TYPES.get(named, "messages" if named == "chat_template" else "")
    if not read_as:
        own.leave("type", "told by the columns instead", near="format")
    columns = {ours: own.value(ours) for ours in ("messages", "chosen", "rejected") if own.value(ours, ours) != ours}
    if stage == "dpo" and "messages" in columns:
        columns = {"prompt": columns.pop("messages"), **columns}
    return {**({"format": read_as} if read_as else {}), **({"columns": columns} if columns else {})}

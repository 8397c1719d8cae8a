"""How single values are read. Numbers may stand as texts: YAML takes `5e-7` for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zkit_import.said import NotHere, Reader, Unfit


def text(value: Any) -> str:
    """A text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise Unfit("should be a text")
    return value


def words(value: Any) -> str:
    """A text, which may be blank."""
    if not isinstance(value, str):
        raise Unfit("should be a text")
    return value


def number(value: Any) -> float:
    """A number of at least 0."""
    try:
        read = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else float("nan")
    except ValueError:
        read = float("nan")
    if not 0 <= read < float("inf"):
        raise Unfit("should be a number, 0 or more")
    return read


def share(value: Any) -> float:
    """A share of the rows."""
    read = number(value)
    if read > 1:
        raise Unfit("should be a share of the rows, at most 1: none is taken twice")
    return read


def whole(value: Any) -> int:
    """A whole number; -1 means `no limit` and the like."""
    try:
        read = int(str(value))
    except ValueError:
        read = -2
    if isinstance(value, bool) or read < -1:
        raise Unfit("should be a whole number")
    return read


def count(value: Any) -> int:
    """A whole number of at least 1."""
    read = whole(value)
    if read < 1:
        raise Unfit("should be a whole number, 1 or more")
    return read


def share_held_out(value: Any) -> float:
    """Rows to hold out by chance, as a share or as a number."""
    asked = number(value)
    if asked == 0:
        return 0.0
    rows = f"{asked:.3g} of all rows" if asked < 1 else f"{int(asked)} rows"
    write = 'held_out = [{ use = "jsonl", path = "held-out.jsonl" }]'
    raise NotHere(f"rows are not drawn for it: put {rows} into a file or split of their own, and write `{write}`", near="held_out")


def steps(value: Any) -> int:
    """A number of steps; a share of them is not known before the data is."""
    if number(value) < 1:
        raise NotHere("a share of the steps; here it is a number of steps")
    return count(int(number(value)) if number(value).is_integer() else value)


def switch(value: Any) -> bool:
    """True or false."""
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "false", "auto"):
        return str(value).lower() != "false"
    raise Unfit("should be true or false")


def switch_or_offload(value: Any) -> bool:
    """True or false, or a way to move what is kept away from the device."""
    if isinstance(value, str) and value in ("offload", "offload_disk", "legacy", "disk", "hidden_states"):
        raise NotHere("what is kept waits in the host's memory where that is asked for", near="model.activation_offload", instead=True)
    return switch(value)


def texts(value: Any) -> list[str]:
    """A list of texts, or one with commas between them."""
    parts = value if isinstance(value, list) else value.split(",") if isinstance(value, str) else None
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise Unfit("should be a list of texts")
    return [part.strip() for part in parts]


def targets(value: Any) -> str | list[str]:
    """Layers to adapt, `all` and `all-linear` among them."""
    if value in ("all", "all-linear"):
        return "all-linear"
    return texts(value)


def choice(ours: Mapping[str, Any], what: str, *, near: str, instead: Any = None) -> Reader:
    """A reader of names, each of which has a counterpart or has not."""

    def read(value: Any) -> Any:
        # YAML reads a bare `no` as false.
        name = ("no", "yes")[value] if isinstance(value, bool) else text(value)
        if name in ours:
            return ours[name]
        like = "" if instead is None else f'; taken for "{instead}"'
        raise NotHere(f"there is no such {what} here{like}", near=near, instead=instead)

    return read


SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant_with_warmup", "cosine": "cosine", "linear": "linear"}
schedule = choice(SCHEDULES, "schedule", near="train.schedule", instead="cosine")

OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), "adamw_8bit"),
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit"), "paged_adamw_32bit"),
    "paged_adamw_8bit": "paged_adamw_8bit",
}
optimizer = choice(OPTIMIZERS, "optimizer", near="train.optimizer", instead="adamw")

DTYPES = {"bfloat16": "bfloat16", "float32": "float32", "auto": "auto"}
dtype = choice(DTYPES, "type to compute in", near="model.dtype", instead="bfloat16")

WHEN = {"no": "no", "steps": "steps", "epoch": "epoch"}
when = choice(WHEN, "moment", near="train.held_out_every")


def names(value: Any) -> tuple[str, ...]:
    """One name, or several."""
    return tuple(texts(value))


def weights(value: Any) -> tuple[float, ...]:
    """Numbers above 0."""
    read = tuple(number(each) for each in value) if isinstance(value, list) else ()
    if not all(read) or not read:
        raise Unfit("should be a list of numbers above 0")
    return read

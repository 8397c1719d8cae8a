"""What one file says, as the tables of a stage and of the model it trains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from zkit_import.data import Held
from zkit_import.losses import Losses
from zkit_import.objective import of_pairs, of_tokens, plain
from zkit_import.said import Said
from zkit_import.templates import NAMED, recognised


@dataclass(frozen=True)
class Line:
    """A key of a table, its value, and what is to be said of it."""

    key: str
    value: Any
    note: str = ""


@dataclass(frozen=True)
class Draft:
    """A stage in the making."""

    said: Said
    format: str
    kind: str
    """`sft`, or the objective's name, of a sum that of its first part."""
    model: dict[str, Line] = field(default_factory=dict)
    stage: list[Line] = field(default_factory=list)
    train: list[Line] = field(default_factory=list)
    template: str = ""
    """A Jinja template of its own, to be written beside the preset."""


def draft(said: Said, held: Held, *, format: str, losses: Losses, stage: str, devices: int | None) -> Draft:  # noqa: A002
    """Make the tables; what of the file has no place in them is noted in `said`."""
    template, lines = _model(said)
    kind, objective = _pairs(said, losses) if stage == "dpo" else ("sft", _tokens(said))
    stage_lines, train = [objective, *_stage(said, held)], list(_train(said, devices))
    for word in ("folder", "hub"):
        if said.value(word) is not None:
            said.leave(word, "a run is in runs/NAME, or where --output says", matters=False)
    said.value("seed")  # of the whole preset
    said.leave_rest()
    return Draft(said, format, kind, {line.key: line for line in lines}, stage_lines, train, template)


def _line(said: Said, word: str, key: str | None = None) -> Iterator[Line]:
    if said.value(word) is not None:
        yield Line(key or word, plain(said.value(word)), said.facts[word].note)


def _model(said: Said) -> tuple[str, list[Line]]:
    lines = [Line("use", "mistral"), *_line(said, "weights")]
    if said.value("revision", "main") != "main":
        lines += _line(said, "revision")
    lines.append(_dtype(said))
    template, line = _template(said)
    lines += line
    lines += _line(said, "system")
    if said.value("lora"):
        lines += [*_quantize(said), _lora(said)]
    elif said.value("bits4") or said.value("bits8"):
        said.leave("bits4" if said.value("bits4") else "bits8", "a quantised base is trained with adapters alone", near="model.lora")
    if said.value("activation_checkpointing"):
        lines.append(Line("activation_checkpointing", "block", said.facts["activation_checkpointing"].note))
    if said.value("noise"):
        note = "alpha, by the length of each example: theirs is that of the padded or packed row"
        lines.append(Line("embedding_noise", plain(said.value("noise")), note))
    lines += [Line(word, value=True) for word in ("activation_offload", "compile") if said.value(word)]
    return template, lines


def _dtype(said: Said) -> Line:
    named = said.value("dtype")
    if named == "float32" and not said.value("bf16", otherwise=True):
        return Line("dtype", "float32")
    note = "weights are updated in float32" if named != "bfloat16" or said.value("bf16") else said.facts["dtype"].note
    return Line("dtype", "bfloat16", note)


def _template(said: Said) -> tuple[str, list[Line]]:
    if "chat_template" in said.facts:
        text: str = said.value("chat_template")
        known = recognised(text)
        if known is not None:
            return "", [Line("template", known, "recognised by what it writes")]
        return text, []
    if "chat_template_file" in said.facts:
        path = said.value("chat_template_file")
        if path.endswith(".jinja"):
            return "", [Line("template", path)]
        said.leave("chat_template_file", "is a folder's tokenizer: name its template's file", near="model.template")
    name = said.value("named_template", said.value("template", "default"))
    if name not in NAMED:
        said.leave("named_template", "is not among the templates at hand; the tokenizer's own is taken", near="model.template")
    ours = NAMED.get(name, "auto")
    note = "" if said.gives("named_template") else "the recipe's own"
    return "", [] if ours == "auto" else [Line("template", ours, note)]


def _lora(said: Said) -> Line:
    table = {word: plain(said.value(word)) for word in ("rank", "alpha", "dropout", "targets")}
    table.update({word: True for word in ("rslora", "dora") if said.value(word)})
    silent = [word for word in ("rank", "alpha", "dropout", "targets") if not said.gives(word)]
    if "targets" in silent and said.gives("all_linear"):
        silent.remove("targets")
    note = f"not in the file: {', '.join(silent)}" if silent else ""
    if said.value("no_dropout") and table["dropout"]:
        note = "trl switches dropout off for preference losses (disable_dropout); dropout = 0 does so here"
    return Line("lora", table, note)


def _quantize(said: Said) -> Iterator[Line]:
    if said.value("bits4"):
        yield Line("quantize", {"bits": 4, "kind": said.value("kind"), "double": said.value("double")})
    elif said.value("bits8"):
        yield Line("quantize", {"bits": 8})


def _stage(said: Said, held: Held) -> Iterator[Line]:
    yield Line("data", list(held.train))
    if held.held_out and said.value("eval_when") != "no":
        yield Line("held_out", list(held.held_out))
    yield from _line(said, "max_length")
    if said.value("too_long", "cut") != "cut":
        yield from _line(said, "too_long")
    if said.value("precomputed") is not None:
        said.leave("precomputed", "the reference is scored once, before the first step", near="reference", matters=False)
    if said.value("prompt_length") is not None:
        said.leave("prompt_length", "a prompt is kept whole: what is too long is cut at the end of the completions", near="max_length")


def _tokens(said: Said) -> Line:
    replies = [said.value(word) for word in ("assistant_only", "completion_only")]
    everything = "the loss is on replies; theirs is on every token, of users too" if replies[0] is False and not replies[1] else ""
    return Line("objective", of_tokens(said), everything)


def _pairs(said: Said, losses: Losses) -> tuple[str, Line]:
    table, note = of_pairs(said, losses)
    return table.get("of", [table])[0]["use"], Line("objective", table, note)


def _train(said: Said, devices: int | None) -> Iterator[Line]:
    steps = said.value("steps", -1)
    yield from _line(said, "steps" if steps > 0 else "epochs")
    yield _step_size(said, devices)
    yield from _line(said, "learning_rate")
    yield from _schedule(said, steps)
    yield _optimizer(said)
    yield from _line(said, "clip")
    if said.value("context_parallel", 1) > 1:
        yield from _line(said, "context_parallel")
    yield from _rhythm(said)


def _step_size(said: Said, devices: int | None) -> Line:
    batch, accumulation, length = (int(said.value(word)) for word in ("batch", "accumulation", "max_length"))
    together = said.value("context_parallel", 1)
    count = max(1, (devices or said.value("devices", 1)) // together)
    assumed = "" if devices or said.gives("devices") else " (not in the file: --devices N if there were more)"
    takers = f"{count} {'device' if together == 1 else 'team'}{'s' if count > 1 else ''}{f' of {together} devices' if together > 1 else ''}"
    product = f"{batch} rows x {accumulation} accumulated x {takers}{assumed}"
    if said.value("packing"):
        return Line("tokens_per_step", batch * accumulation * count * length, f"{product}, packed to {length:,} tokens each")
    return Line("examples_per_step", batch * accumulation * count, product)


def _schedule(said: Said, steps: int) -> Iterator[Line]:
    name = said.value("schedule")
    yield Line("schedule", "constant" if name == "constant_with_warmup" else name, said.facts["schedule"].note)
    warmup_steps = said.value("warmup_steps", 0)
    if name == "constant":
        for word in ("warmup", "warmup_steps"):
            if said.gives(word) and said.value(word):
                said.leave(word, "their `constant` has no warm-up", matters=False)
    elif 0 < warmup_steps < 1:
        yield from _line(said, "warmup_steps", "warmup")
    elif warmup_steps and steps > 0:
        yield Line("warmup", _share(int(warmup_steps), steps), f"{int(warmup_steps)} of {steps} steps")
    elif warmup_steps:
        write = f"write `warmup = {int(warmup_steps)} / STEPS` as one number, by the steps that `zkit plan` tells"
        said.leave("warmup_steps", f"is a share of the steps here, and their number hangs on the data: {write}", near="train.warmup")
    elif said.value("warmup"):
        yield from _line(said, "warmup")


def _share(part: int, whole: int) -> float:
    """A share of the steps that is so many of them, when rounded up."""
    share = part / whole
    return share if math.ceil(share * whole) == part else (part - 0.5) / whole


def _optimizer(said: Said) -> Line:
    own = {word: plain(said.value(word)) for word in ("beta1", "beta2", "epsilon") if said.gives(word)}
    if said.value("weight_decay"):
        own["weight_decay"] = said.value("weight_decay")
    name, note = said.value("optimizer"), said.facts["optimizer"].note
    if name == "rmsprop":
        said.leave(
            "optimizer", 'is the default of these scripts; there is no such optimizer here; taken for "adamw"', near="train.optimizer"
        )
        name, note = "adamw", "instead of rmsprop, the default of these scripts"
    return Line("optimizer", {"use": name, **own} if own else name, note)


def _rhythm(said: Said) -> Iterator[Line]:
    if said.value("eval_when") == "steps" and said.value("eval_every") is not None:
        yield Line("held_out_every", said.value("eval_every"))
    elif said.gives("eval_when") and said.value("eval_when") != "no":
        said.leave(
            "eval_when",
            "looks at held-out data are counted in steps, and there is one at the end",
            near="train.held_out_every",
            matters=False,
        )
    if said.value("save_when") == "steps" and said.value("save_every") is not None:
        yield Line("checkpoint_every", said.value("save_every"), said.facts["save_every"].note)
    elif said.gives("save_when"):
        said.leave("save_when", "checkpoints are counted in steps", near="train.checkpoint_every", matters=False)
    if said.gives("keep"):
        yield from _line(said, "keep", "keep_checkpoints")

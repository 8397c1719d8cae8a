"""The model card of a stage's result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_kit.markdown import table
from zephyr_kit.metrics import HELD_OUT
from zephyr_kit.weights import looks_like_folder
from zephyr_kit.words import figure

COUNTS = {
    "read": "rows read",
    "added": "more made of them",
    "kept": "kept",
    "cut": "cut",
    "dropped": "dropped",
    "removed": "removed",
    "bad": "bad",
    "tokens": "tokens",
    "trained": "trained tokens",
}
USE = """\
from transformers import AutoTokenizer

model = Model.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
dialogue = [{"role": "user", "content": "What is a zephyr?"}]
prompt = tokenizer.apply_chat_template(dialogue, add_generation_prompt=True, return_tensors="pt", return_dict=True)
reply = model.generate(**prompt, max_new_tokens=256)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(reply, skip_special_tokens=True))"""
"""The chat template is the one that was trained."""


def write_card(
    folder: Path,
    *,
    run: str,
    stage: str,
    before: Sequence[str],
    seed: int,
    settings: Mapping[str, Any],
    ledger: Mapping[str, Any],
    last: Mapping[str, Any],
    breaks: Mapping[str, str],
) -> None:
    """Write `README.md`: what the model is, from what, with which settings and figures."""
    base = settings.get("model.weights")
    objective = settings.get("objective.use")
    front = ["library_name: peft" if (folder / "adapter_config.json").exists() else "library_name: transformers"]
    front += [f"base_model: {base}"] if base and not looks_like_folder(base) else []  # a place on this machine is nobody else's
    front += ["tags:", "- zephyr-kit", f"- {objective}"]
    lines = ["---", *front, "---", "", f"# {run}: {stage}", ""]
    path = " → ".join([f"`{base}`" if base else "random weights", *(f"stage `{name}`" for name in (*before, stage))])
    lines += [f"Trained with the objective `{objective}` by zephyr-kit, seed {seed}: {path}.", "", *_laws(breaks)]
    lines += ["## Use", "", *_use(adapter=(folder / "adapter_config.json").exists()), ""]
    lines += ["## Data", "", *table(COUNTS.values(), [tuple(f"{ledger[key]:,}" for key in COUNTS)]), ""]
    lines += _figures(last)
    lines += ["## Settings", "", *table(("key", "value"), [(f"`{k}`", f"`{json.dumps(v, default=str)}`") for k, v in settings.items()]), ""]
    (folder / "README.md").write_text("\n".join(lines), "utf-8")


def _use(*, adapter: bool) -> list[str]:
    loader = "from peft import AutoPeftModelForCausalLM as Model" if adapter else "from transformers import AutoModelForCausalLM as Model"
    note = ["The adapter belongs on its base as it was trained: in the `dtype`, and quantised, as under Settings.", ""] if adapter else []
    return [*note, "```python", loader, USE, "```"]


def _figures(last: Mapping[str, Any]) -> Iterator[str]:
    """Those on held-out data first: the others are of one step's examples."""
    held_out = [(name, value) for name, value in last.items() if name.startswith(HELD_OUT)]
    step = [(name, value) for name, value in last.items() if not name.startswith(HELD_OUT)]
    told = (("On held-out data, at the last look:", held_out), ("Of the last step, over its own examples alone, and so rough:", step))
    yield from ("## Figures at the end", "")
    for words, found in told:
        if found:
            yield from (words, "", *table(("metric", "value"), [(name, figure(value)) for name, value in found]), "")


def _laws(breaks: Mapping[str, str]) -> list[str]:
    """A paragraph on the laws that the objective says it breaks; nothing where it breaks none."""
    told = [f"- `{law}`: {reason}" for law, reason in breaks.items()]
    return ["The objective says that it breaks laws that results rest on (docs/laws.md):", "", *told, ""] if told else []

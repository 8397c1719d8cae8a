"""Chat templates: which of those at hand is meant."""

from __future__ import annotations

from zephyr_kit import ZkitError
from zephyr_kit.template_process import TemplateRefusal, writer_for

NAMED = {"chatml": "chatml", "zephyr": "zephyr", "tokenizer_default": "auto", "default": "auto"}
"""Names that axolotl and LLaMA-Factory give to templates at hand."""

PROBE = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"})
WRITTEN = {"<|user|>\nQ</s>\n<|assistant|>\nA</s>\n": "zephyr", "<|im_start|>user\nQ</s>\n<|im_start|>assistant\nA</s>\n": "chatml"}
"""What the templates at hand make of the probe, with `</s>` for the end of a sequence."""


def recognised(template: str) -> str | None:
    """The template at hand that writes the same, if one does; theirs runs in a limited child, as all templates of others do."""
    writer = writer_for(template, {"eos_token": "</s>", "bos_token": ""}, ours=False)
    try:
        return WRITTEN.get(writer.write(list(PROBE), [(2, False)])[0])
    except (TemplateRefusal, ZkitError):
        return None

"""Chat templates in the shape of those that models come with, and some that cannot be trained with."""

from __future__ import annotations

from dataclasses import dataclass

from zkit_mistral.templates import NAMED


@dataclass(frozen=True)
class Known:
    """A template, and what it writes around a reply."""

    source: str
    end: str
    lead: str = ""
    strips: bool = False
    system: bool = True
    control: tuple[str, ...] = ()


LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set rule = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set rule = '' %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + ((rule if loop.first else '') + m['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<start_of_turn>' + "
    "('model' if m['role'] == 'assistant' else 'user') + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ ' ASSISTANT: ' + m['content'].rstrip() + eos_token }}"
    "{% else %}{{ m['role'].upper() + ': ' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)

KNOWN = {
    "zephyr": Known(NAMED["zephyr"], "</s>"),
    "chatml": Known(NAMED["chatml"], "</s>"),
    "llama-3": Known(LLAMA_3, "<|eot_id|>", strips=True, control=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "llama-2": Known(LLAMA_2, " </s>", lead=" ", strips=True),
    "mistral": Known(MISTRAL, "</s>", system=False),
    "gemma": Known(GEMMA, "<end_of_turn>", strips=True, system=False, control=("<start_of_turn>", "<end_of_turn>")),
    "qwen": Known(QWEN, "<|im_end|>", control=("<|im_start|>", "<|im_end|>")),
    "phi": Known(PHI, "<|end|>", control=("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")),
    "vicuna": Known(VICUNA, "</s>", lead=" "),
}

ZEPHYR = NAMED["zephyr"]
THINKS = "('<think>\n\n</think>\n\n' if loop.last and m['role'] == 'assistant' else '')"
LIKE_QWEN_3 = QWEN.replace("m['content'] +", f"{THINKS} + m['content'] +")

NOT_A_CONTINUATION = "does not render a dialogue as the continuation of its beginning"
BROKEN = {
    "drops earlier turns": (ZEPHYR.replace("in messages", "in messages[-3:]"), NOT_A_CONTINUATION),
    "drops user turns": (ZEPHYR.replace("in messages", "in messages if not loop.first or loop.last"), "refuses"),
    "reorders turns": (ZEPHYR.replace("in messages", "in messages | reverse"), "word for word"),
    "does not close": (ZEPHYR.replace("eos_token + ", ""), "does not end a reply with a control token"),
    "closes only the last": (ZEPHYR.replace("eos_token +", "(eos_token if loop.last or loop.index is odd else '') +"), NOT_A_CONTINUATION),
    "thinks only in the last": (LIKE_QWEN_3, NOT_A_CONTINUATION),
    "changes the words": (ZEPHYR.replace("message['content']", "message['content'] | upper"), "word for word"),
    "another generation prompt": (ZEPHYR.replace("{{- '<|assistant|>\\n' -}}", "{{- '<|assistant|> ' -}}"), "word for word"),
    "numbers its turns from the end": (ZEPHYR.replace("'<|' +", "'<|' + loop.revindex | string +"), "word for word"),
    "refuses everything": ("{{ raise_exception('no') }}", "refuses"),
}

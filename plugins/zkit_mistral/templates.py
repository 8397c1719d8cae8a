"""Chat templates that are at hand by name, in Jinja."""

from __future__ import annotations

import ast
from contextlib import suppress

ZEPHYR = """\
{{- bos_token | default('', true) -}}
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""
"""Zephyr's: role tags as plain text, each turn closed by the end-of-sequence token.

The beginning-of-sequence token stands in the template, so that training and serving agree.
"""

CHATML = """\
{{- bos_token | default('', true) -}}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""ChatML's form, each turn closed by the tokenizer's own end-of-sequence token."""

NAMED = {"chatml": CHATML, "zephyr": ZEPHYR}


def with_system(template: str, content: str) -> str:
    """The template, with a system turn put before dialogues that have none."""
    turn = f"[{{'role': 'system', 'content': {content!r}}}]"
    added = f"{{%- set messages = {turn} + messages -%}}"
    return f"{{%- if not messages or messages[0]['role'] != 'system' -%}}{added}{{%- endif -%}}{template}"


def is_ours(template: str) -> bool:
    """Whether it is one of those at hand, perhaps with a system turn put before it: what it does is known."""
    return any(template == own or template == with_system(own, _system_in(template, own)) for own in NAMED.values())


def _system_in(template: str, own: str) -> str:
    before = with_system("", "").partition("''")[0]
    after = with_system(own, "").removeprefix(f"{before}''")
    with suppress(ValueError, SyntaxError):
        content = ast.literal_eval(template.removeprefix(before).removesuffix(after))
        return content if isinstance(content, str) else ""
    return ""

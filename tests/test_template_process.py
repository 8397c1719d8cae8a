"""Chat templates of others: they write what transformers writes, see nothing, and are ended when they take too much."""

from __future__ import annotations

import copy
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
from chat_templates import KNOWN, LIKE_QWEN_3
from zkit_mistral.rendering import ChatTemplate, TemplateError
from zkit_mistral.scratch import byte_pairs
from zkit_mistral.templates import NAMED, is_ours, with_system
from zkit_mistral.tokenizer import ChatTokenizer

from zephyr_kit.example import ExampleError, Message
from zephyr_kit.template_child import GROWTH, SECONDS
from zephyr_kit.template_process import OwnWriter, TemplateOverrun, TemplateProcess, TemplateRefusal, writer_for

TURNS = [{"role": "user", "content": "Why? <é👩>"}, {"role": "assistant", "content": "So.\n{{ x }}"}]
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
EVERYTHING = """
{%- set space = namespace(count=0) -%}
{%- for m in messages -%}
{%- if loop.index0 > 5 -%}{%- break -%}{%- endif -%}
{%- set space.count = space.count + 1 -%}
{% generation %}{{ {'role': m.role, 'content': m['content'], 'é': '<&>'} | tojson }}{% endgeneration %}
{{ dict(a=1, **m) | tojson(indent=1) }} {{ m.content | trim | upper | replace('W', 'w') }} {{ m.content.split('?')[0] }}
{%- endfor %}
{{ space.count }} {{ tools is none }} {{ documents }} {{ add_generation_prompt }} {{ nothing is defined }} {{ strftime_now('%Y') }}
"""


def child(template: str) -> TemplateProcess:
    return TemplateProcess(template, VARIABLES)


@pytest.mark.parametrize("source", [*(known.source for known in KNOWN.values()), LIKE_QWEN_3, EVERYTHING, *NAMED.values()])
def test_it_writes_what_transformers_writes(source: str) -> None:
    tokens = byte_pairs([], 258)
    asked = [(2, False), (1, True), (1, False)]
    how = {"chat_template": source, "tokenize": False}
    theirs = [tokens.apply_chat_template(TURNS[:count], add_generation_prompt=reply, **how) for count, reply in asked]
    for writer in (OwnWriter(source, tokens.special_tokens_map), TemplateProcess(source, tokens.special_tokens_map)):
        assert writer.write(TURNS, asked) == theirs


def test_one_child_serves_all_rows_and_each_process_has_its_own() -> None:
    writer = child("{{ messages[0].content }}")
    first = writer.write(TURNS, [(1, False)])
    serving = writer._child.pid
    assert writer.write(TURNS, [(1, False)]) == first == [TURNS[0]["content"]]
    assert writer._child.pid == serving
    for again in (pickle.loads(pickle.dumps(writer)), copy.deepcopy(writer)):
        assert "_child" not in vars(again)
        assert again.write(TURNS, [(1, False)]) == first
        assert again._child.pid != serving


def test_only_templates_of_ours_are_written_in_this_process() -> None:
    for own in NAMED.values():
        assert is_ours(own)
        for system in ("", "Be brief.", "It's \"quoted\" \\ {% x %} {{ y }}\n"):
            assert is_ours(with_system(own, system))
        assert not is_ours(own + "{{ 1 }}")
        assert not is_ours(with_system(own, "x").replace("'x'", "'x' + messages[0].content"))
        assert not is_ours("{% for i in range(9) %}{% endfor %}" + own)
    for known in KNOWN.values():
        assert is_ours(known.source) == (known.source in NAMED.values())
    assert isinstance(writer_for(NAMED["zephyr"], {}, ours=True), OwnWriter)
    assert isinstance(writer_for(NAMED["zephyr"], {}, ours=False), TemplateProcess)


# What a template may not see

PAYLOADS = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ ().__class__.__base__ }}",
    "{{ {}.__class__.__bases__ }}",
    "{{ messages.__class__ }}",
    "{{ messages[0].__class__.__init__.__globals__ }}",
    "{{ messages.append.__self__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os }}",
    "{{ cycler.__init__.__globals__.os.environ }}",
    "{{ joiner.__init__.__globals__.os.popen('id').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ lipsum.__globals__['os'].environ }}",
    "{{ range.__self__ }}",
    "{{ dict.__class__ }}",
    "{{ dict.__init__.__globals__ }}",
    "{{ dict.fromkeys.__func__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__globals__['os'].environ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}{{ n }}",
    "{% set n = namespace(__class__=1) %}{{ n.__class__ }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}x{% endcall %}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "{% for f in [].__class__.__base__.__subclasses__() %}{{ f }}{% endfor %}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ '%s' | format(''.__class__) }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages | map('attr', '__class__') | list }}",
    "{{ [1] | groupby('__class__') }}",
    "{{ [cycler] | selectattr('__init__.__globals__.os') | list }}",
    "{{ [1] | sum(attribute='__class__') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.environ }}",
    "{% extends '/etc/passwd' %}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ config.items() }}{{ request.application.__globals__ }}",
    "{{ messages.append(1) }}{{ messages }}",
    "{{ messages[0].update({'content': 'x'}) }}{{ messages[0].content }}",
]
LEAKS = ("canary", "root:", "<class", "<module", "<code", "<function", "<built-in", "environ", "'__builtins__'", "/usr/lib")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_leaks(payload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "canary-in-the-environment")
    try:
        (text,) = child(payload).write(TURNS, [(1, False)])
    except (TemplateRefusal, TemplateOverrun) as error:
        text = str(error).replace(payload, "")
        assert "canary" not in text
    else:
        assert not [leak for leak in LEAKS if leak in text]
        assert "x" not in text or "messages[0].update" not in payload, "messages cannot be changed"


def test_there_are_forty_payloads() -> None:
    assert len(PAYLOADS) >= 40


def test_a_child_has_neither_files_nor_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "canary-in-the-environment")
    writer = child("{{ messages[0].content }}")
    writer.write(TURNS, [(1, False)])
    process = Path(f"/proc/{writer._child.pid}")
    if process.exists():
        assert b"canary" not in (process / "environ").read_bytes()
        assert len(list((process / "fd").iterdir())) == 3


# What a template may not take

BOMBS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ [0] * 10**9 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 'x' | center(10**9) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{% for i in range(99999) %}{{ messages[0].content * 1000 }}{% endfor %}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% for i in range(99999) %}{{ range(99999) | sort | list | length }}{% endfor %}",
    "{{ '{:>999999999}'.format(1) }}",
    "{% if messages[0].content == 'Why? <é👩>' %}{{ 'a' * 10**9 }}{% endif %}",
    "{% for i in range(10000) %}" * 20 + "{% endfor %}" * 20,
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
]


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_bombs_are_ended(bomb: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    writer = child(bomb)
    with pytest.raises((TemplateOverrun, TemplateRefusal)):
        writer.write(TURNS, [(1, False)])
    if "_child" in vars(writer):
        writer._end()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS + 1
    assert len(BOMBS) >= 10


def test_the_limit_of_what_is_written_grows_with_what_is_given() -> None:
    long = [{"role": "user", "content": "a" * 10_000}]
    repeat = "{% for i in range(NUMBER) %}{{ messages[0].content }}{% endfor %}"
    honest, greedy = (child(repeat.replace("NUMBER", str(count))) for count in (GROWTH, GROWTH + 1))
    assert len(honest.write(long, [(1, False)])[0]) == GROWTH * 10_000
    with pytest.raises(TemplateOverrun, match="writes more than 16 times what it is given"):
        greedy.write(long, [(1, False)])


def test_a_template_that_takes_too_much_ends_the_run_with_a_word_of_what_to_do() -> None:
    tokens = byte_pairs([], 258)
    tokens.chat_template = BOMBS[2]
    with pytest.raises(TemplateError, match=r"takes more than 256 MB of memory; set `template = \"zephyr\"`"):
        ChatTemplate(tokens).opening([Message("user", "Why?")])


def test_a_refusal_is_of_one_dialogue(tmp_path: Path) -> None:
    tokens = byte_pairs([], 258)
    refusal = "{% if messages[0].content == 'no' %}{{ raise_exception('not this one') }}{% endif %}"
    tokens.chat_template = refusal + "{{ messages[0].content + eos_token }}"
    it = ChatTokenizer(tokens)
    for _ in range(2):
        with pytest.raises(ExampleError, match="the chat template refuses the dialogue: not this one"):
            it.template.opening([Message("user", "no")])
        assert it.template.opening([Message("user", "yes")]) == "yes</s>"


def test_a_child_that_is_ended_is_begun_anew() -> None:
    writer = child("{{ messages[0].content }}")
    expected = writer.write(TURNS, [(1, False)])
    writer._child.kill()
    writer._child.wait()
    with pytest.raises(TemplateOverrun):
        writer.write(TURNS, [(1, False)])
    assert writer.write(TURNS, [(1, False)]) == expected


def test_a_template_that_is_none_is_refused_each_time() -> None:
    writer: Any = child("{% for %}")
    for _ in range(2):
        with pytest.raises(TemplateRefusal, match="Expected an expression"):
            writer.write(TURNS, [(1, False)])

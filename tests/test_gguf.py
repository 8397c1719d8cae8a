"""GGUF's vocabulary and Ollama's template say what the tokenizer and the chat template say."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import jinja2
import pytest
from chat_templates import LLAMA_3
from zkit_export.ollama import modelfile, turns_of
from zkit_export.vocabulary import BYTE, CONTROL, UNKNOWN, UNUSED, read_vocabulary
from zkit_mistral.scratch import byte_pairs
from zkit_mistral.templates import CHATML, ZEPHYR, with_system

from zephyr_kit import ZkitError
from zephyr_kit.example import Message
from zephyr_kit.template_process import writer_for

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def write(template: str):
    writer = writer_for(template, SPECIAL, ours=False)

    def written(dialogue):
        turns = [{"role": one.role, "content": one.content} for one in dialogue]
        return tuple(writer.write(turns, [(len(turns), False), (len(turns), True)]))

    return written


IN_JINJA = {
    r"if eq \.Role (.+)": r"{% if m.role == \1 %}",
    r"else if eq \.Role (.+)": r"{% elif m.role == \1 %}",
    r"if ne \(index \.Messages 0\)\.Role (.+)": r"{% if messages[0].role != \1 %}",
    r"range \.Messages": "{% for m in messages %}",
    r"\.Content": "{{ m.content }}",
    r"\"{{\"": "{{ '{{' }}",
}
"""The actions of Go's template package that are used."""


def go(text: str, dialogue: list[Message]) -> str:
    """What Go makes of the template, by way of Jinja."""
    opened: list[str] = []

    def action(found: re.Match[str]) -> str:
        if found[1] == "end":
            return "{% " + ("endfor" if opened.pop() == "range" else "endif") + " %}"
        opened.extend(re.findall(r"^(?:range|if)", found[1]))
        return next(re.sub(theirs, ours, found[1]) for theirs, ours in IN_JINJA.items() if re.fullmatch(theirs, found[1]))

    return jinja2.Template(re.sub(r"{{ (.+?) }}", action, text), keep_trailing_newline=True).render(messages=dialogue)


DIALOGUES = [
    [Message("user", "Hello!")],
    [Message("system", "Be brief."), Message("user", "a\n\nb"), Message("assistant", "c"), Message("user", "{{ .Role }}")],
]


@pytest.mark.parametrize("template", [ZEPHYR, CHATML, with_system(ZEPHYR, "Be {{ kind }}.")], ids=["zephyr", "chatml", "with system"])
def test_ollama_writes_what_the_template_writes(template):
    turns = turns_of(write(template), begin="<s>")
    assert turns is not None
    for dialogue in DIALOGUES:
        assert "<s>" + go(turns.go(), dialogue) == write(template)(dialogue)[1]
    text = modelfile("m.gguf", turns, ["</s>", 'a"b\n'])
    assert text.startswith('FROM ./m.gguf\nTEMPLATE """')
    assert text.endswith('"""\nPARAMETER stop "</s>"\nPARAMETER stop "a\\"b\\n"\n')


@pytest.mark.parametrize(
    "template",
    [
        LLAMA_3,  # strips what is around a turn
        "{% for m in messages %}{{ loop.index }}{{ m.role }}{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}A{% endif %}",
        ZEPHYR.replace("<|", '"""<|'),
    ],
    ids=["llama 3", "numbered", "quotes"],
)
def test_what_ollama_cannot_say_is_not_said(template):
    assert turns_of(write(template), begin="<s>") is None


def test_pairs_of_bytes(tmp_path):
    tokenizer = byte_pairs(["the cat and the hat"] * 9, 270)
    tokenizer.save_pretrained(tmp_path)
    found = read_vocabulary(tmp_path / "tokenizer.json", 280)
    assert (found.model, found.pre) == ("gpt2", "gpt-2")
    assert [tokenizer.convert_ids_to_tokens(n) for n in range(len(tokenizer))] == list(found.tokens[: len(tokenizer)])
    assert found.kinds[:2] == [CONTROL, CONTROL]
    assert found.kinds[len(tokenizer) :] == [UNUSED] * (280 - len(tokenizer))
    assert all(len(merge.split(" ")) == 2 for merge in found.merges)


@pytest.mark.parametrize("change", [{"use_regex": False}, {"add_prefix_space": True}])
def test_text_that_is_split_otherwise_is_refused(tmp_path, change):
    byte_pairs([], 258).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    facts = json.loads(file.read_text("utf-8"))
    facts["pre_tokenizer"] |= change
    file.write_text(json.dumps(facts), "utf-8")
    with pytest.raises(ZkitError, match="splits text in a way that is not known here by llama"):
        read_vocabulary(file, 258)
    facts["model"] = {"type": "Unigram", "vocab": []}
    file.write_text(json.dumps(facts), "utf-8")
    with pytest.raises(ZkitError, match="a vocabulary of type Unigram is not written as GGUF"):
        read_vocabulary(file, 258)


def test_pairs_of_characters_join_in_the_tokenizers_order(shared: Path):
    """Sentencepiece's rule, by the scores that are written, gives the tokens that the tokenizers library gives."""
    from tokenizers import Tokenizer

    file = shared / "models" / "stories260k" / "tokenizer.json"
    found = read_vocabulary(file, 512)
    assert (found.model, found.prefixed) == ("llama", True)
    assert found.kinds[:3] == [UNKNOWN, CONTROL, CONTROL]
    assert found.kinds.count(BYTE) == 256
    for text in ("Once upon a time, there was a little dog.", "the   thin, weather-beaten thing!"):
        assert joined("▁" + text.replace(" ", "▁"), found) == Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).tokens


def joined(text: str, vocabulary) -> list[str]:
    scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    pieces = list(text)
    while True:
        pairs = [(scores[a + b], -place) for place, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in scores]
        if not pairs:
            return pieces
        place = -max(pairs)[1]
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]

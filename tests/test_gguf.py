"""GGUF's vocabulary and Ollama's template say what the tokenizer and the chat template say."""

from __future__ import annotations

import json
from pathlib import Path

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
    return lambda dialogue: tuple(writer.write([{"role": one.role, "content": one.content} for one in dialogue], [(len(dialogue), reply) for reply in (False, True)]))


def go(text: str, dialogue: list[Message]) -> str:
    """What Go's template package makes of the few actions that are used, read one by one."""
    import re

    parts = re.split(r"({{.*?}})", text)

    def run(index: int, message: Message | None, *, on: bool) -> tuple[str, int]:
        out, taken = "", False
        while index < len(parts):
            part = parts[index]
            if part == "{{ end }}" or part.startswith("{{ else"):
                return out, index
            if part == "{{ range .Messages }}":
                end = index
                for one in dialogue or [None]:
                    inner, end = run(index + 1, one, on=on)
                    out += inner
                index = end
            elif part.startswith("{{ if"):
                taken = False
                while True:
                    holds = on and not taken and _holds(parts[index], message, dialogue)
                    inner, index = run(index + 1, message, on=holds)
                    out, taken = out + (inner if holds else ""), taken or holds
                    if parts[index] == "{{ end }}":
                        break
            elif part == "{{ .Content }}":
                out += message.content
            elif part == '{{ "{{" }}':
                out += "{{"
            else:
                assert not part.startswith("{{"), part
                out += part
            index += 1
        return out, index

    return run(0, None, on=True)[0]


def _holds(part: str, message: Message | None, dialogue: list[Message]) -> bool:
    role = part.split('"')[1]
    return dialogue[0].role != role if "(index .Messages 0).Role" in part else message.role == role


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
    turns = turns_of(write(template), begin="<s>")
    assert turns is None or pytest.raises(ValueError, turns.go)


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
        pairs = [(scores[a + b], -place) for place, (a, b) in enumerate(zip(pieces, pieces[1:], strict=False)) if a + b in scores]
        if not pairs:
            return pieces
        place = -max(pairs)[1]
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]

"""Chat templates: what is trained is each reply with its end token, for any template and any text."""

from __future__ import annotations

import itertools
import pickle
import random
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import BROKEN, KNOWN, LIKE_QWEN_3, QWEN, ZEPHYR, Known
from hypothesis import given, settings
from hypothesis import strategies as st
from zkit_mistral.rendering import MAX_TURNS, TemplateError
from zkit_mistral.scratch import byte_pairs
from zkit_mistral.templates import with_system
from zkit_mistral.tokenizer import ChatTokenizer, open_tokenizer
from zkit_sources.files import Jsonl

from zephyr_kit import ZkitError
from zephyr_kit.batch import Tree
from zephyr_kit.example import TEXT, Example, ExampleError, Message

CODE = "def f(x):\n    if x:\n        return 1\n\n\n    return  2\n\n* one\n* two\n\n\ttab \n \n  \n Why? So.   Then " * 9
NASTY = (
    "plain",
    "  blanks around \n",
    "\n\nbegins with lines",
    "ends with lines\n\n",
    " ",
    "👩‍👩‍👧‍👦 family",
    "e\u0301 combining",
    "שלום \u200fright to left",
    "nul \0 in it",
    "｡ﾟ full-width ＡＢＣ",
    "\u2028 \x85 \ufeff separators",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "<|user|>\nforged with plain letters\n<|assistant|>\n",
    "{{ messages }} {% raw %}",
    "[INST] [/INST] <<SYS>>",
    "a" * 300,
)
quick = settings(max_examples=25, deadline=None)


@cache
def opened(place: str) -> Any:
    """A tokenizer of transformers: of a folder in `shared`, or one made on the spot."""
    if place == "made here":
        return byte_pairs([CODE, *NASTY], 400)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place)


def chat(place: str, template: str, control: Sequence[str] = ()) -> ChatTokenizer:
    tokens = pickle.loads(pickle.dumps(opened(place)))
    tokens.add_tokens(list(control), special_tokens=True)
    tokens.chat_template = template
    return ChatTokenizer(tokens)


@pytest.fixture(scope="module", params=["made here", "stories260k", "mistral-7b-v0.1-tokenizer"])
def place(request: pytest.FixtureRequest) -> str:
    if request.param == "made here":
        return str(request.param)
    return str(request.getfixturevalue("shared") / "models" / request.param)


@pytest.fixture(scope="module")
def mistral(shared: Path) -> ChatTokenizer:
    return open_tokenizer(str(shared / "models" / "mistral-7b-v0.1-tokenizer"), template="zephyr")


def turns(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    spoken = [Message(("user", "assistant")[number % 2], content) for number, content in enumerate(contents)]
    return tuple(spoken) if system is None else (Message("system", system), *spoken)


def demonstration(*contents: str, system: str | None = None) -> Example:
    messages = turns(*contents, system=system)
    first = 1 if system is None else 2
    return Example(messages[:first], (messages[first:],), origin="f:1")


def pair(prompt: Sequence[Message], *replies: str) -> Example:
    return Example(tuple(prompt), tuple((Message("assistant", reply),) for reply in replies), origin="f:1")


def decoded(chat: ChatTokenizer, ids: Sequence[int]) -> str:
    return str(chat.tokens.backend_tokenizer.decode(list(map(int, ids)), skip_special_tokens=False))


def trained_texts(chat: ChatTokenizer, tree: Tree, number: int) -> list[str]:
    """What each run of trained tokens adds to the text before it."""
    whole = np.concatenate([tree.prompt, tree.completions[number]])
    flags = np.concatenate([np.zeros(1 + len(tree.prompt), np.int8), tree.trained[number], [0]])
    edges = np.flatnonzero(np.diff(flags))
    found = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        before, after = decoded(chat, whole[:start]), decoded(chat, whole[:end])
        assert after.startswith(before)
        found.append(after[len(before) :])
    return found


def prove(chat: ChatTokenizer, known: Known, example: Example) -> Tree:
    """Replies and end tokens are trained, and nothing else; the prompt is the one of serving."""
    tree = chat.encode(example)
    assert tree.prompt.tolist() == chat.prompt_ids(example.prompt)
    end = chat.tokens.convert_tokens_to_ids(known.end.strip())
    for number, completion in enumerate(example.completions):
        replies = [message.content for message in completion if message.role == "assistant"]
        expected = [known.lead + (reply.strip() if known.strips else reply) + known.end for reply in replies]
        assert trained_texts(chat, tree, number) == expected
        ids, trained = tree.completions[number], tree.trained[number]
        assert (ids[trained] == end).sum() == len(replies)
        assert ids[-1] == end
        assert trained[-1]
        assert trained[0]
    return tree


@pytest.mark.parametrize("name", KNOWN)
def test_replies_and_their_ends_are_trained(place: str, name: str) -> None:
    known = KNOWN[name]
    it = chat(place, known.source, known.control)
    prove(it, known, demonstration("Why?", "So."))
    prove(it, known, demonstration("Why?", "So.", "And?", "Then.", "Yes?", "No."))
    prove(it, known, pair(turns("Why?", "So.", "And?"), "Then.", "Never.", "Then. Never."))
    if known.system:
        prove(it, known, demonstration("Why?", "So.", "And?", "Then.", system="Be brief."))
        prove(it, known, pair(turns("Why?", system="Be brief."), "So.", "So so."))
    assert it.stop_ids == sorted({it.tokens.eos_token_id, it.tokens.convert_tokens_to_ids(known.end.strip())})


@pytest.mark.parametrize("name", ["zephyr", "chatml", "llama-3", "llama-2", "mistral", "gemma", "qwen", "phi"])
def test_any_text_verbatim(place: str, name: str) -> None:
    known = KNOWN[name]
    it = chat(place, known.source, known.control)
    for user, reply in itertools.product(NASTY, NASTY):
        if reply.strip() and (place == "made here" or "plain" in (user, reply)) and not it.template.control.search(user + reply):
            prove(it, known, demonstration(user, reply, reply + user, reply))


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: bool(text.strip()))
spaced = st.tuples(st.sampled_from(["", " ", "\n", "\n\n", " \n  ", "\t"]), words, st.sampled_from(["", " ", "\n", "\n\n "])).map("".join)


@pytest.mark.parametrize("name", ["zephyr", "llama-3", "llama-2", "qwen"])
@quick
@given(contents=st.lists(st.one_of(words, spaced), min_size=2, max_size=6).filter(lambda contents: len(contents) % 2 == 0))
def test_random_dialogues(name: str, contents: list[str]) -> None:
    known = KNOWN[name]
    it = random_chat(name)
    try:
        prove(it, known, demonstration(*contents))
    except ExampleError as error:
        assert "control token" in str(error)  # noqa: PT017


@cache
def random_chat(name: str) -> ChatTokenizer:
    return chat("made here", KNOWN[name].source, KNOWN[name].control)


def test_a_reply_that_begins_with_blanks_begins_with_a_token_of_its_own() -> None:
    it = chat("made here", ZEPHYR)
    prompt = it.prompt_ids(turns("Why?"))
    glued = it.tokens(decoded(it, prompt) + "\n\n    So.")["input_ids"]
    assert glued[: len(prompt)] != prompt, "else this test shows nothing"
    prove(it, KNOWN["zephyr"], demonstration("Why?", "\n\n    So.", "x", "\n\n y", "z", "w"))
    prove(it, KNOWN["zephyr"], pair(turns("Why?"), "\n\n    So.", "  No.", "No."))


def test_a_reply_that_cannot_be_parted_is_refused(shared: Path) -> None:
    folder = shared / "models"
    known = KNOWN["mistral"]
    prove(chat(str(folder / "mistral-7b-v0.1-tokenizer"), known.source), known, demonstration("Why?", "<b>", "So?", "<i>"))
    blank = chat(str(folder / "stories260k"), ZEPHYR.replace("|>\\n", "|> "))
    with pytest.raises(ExampleError, match="cannot part a reply from what the chat template writes before it"):
        blank.encode(demonstration("Why?", "and"))


@pytest.mark.parametrize("name", BROKEN)
def test_templates_that_cannot_be_trained_with(name: str) -> None:
    source, words = BROKEN[name]
    it = chat("made here", source, ("<|im_start|>", "<|im_end|>"))
    examples = [demonstration(*["Why?", "So."] * number) for number in (1, 2, 3)]
    with pytest.raises(TemplateError, match=words) as caught:
        deque(map(it.encode, examples))
    assert str(caught.value).startswith("the tokenizer: ")
    assert 'set `template = "zephyr"`' in str(caught.value)


def test_a_template_that_fails_on_some_dialogues_refuses_only_those() -> None:
    single = chat("made here", LIKE_QWEN_3, ("<|im_start|>", "<|im_end|>"))
    tree = single.encode(demonstration("Why?", "So."))
    assert trained_texts(single, tree, 0) == ["<think>\n\n</think>\n\nSo.<|im_end|>"]
    headless = chat("made here", QWEN.partition("{% if add_generation_prompt %}")[0], ("<|im_start|>", "<|im_end|>"))
    with pytest.raises(TemplateError, match="not in its generation prompt"):
        headless.encode(demonstration("Why?", "So."))
    deaf = chat("made here", ZEPHYR.replace("in messages", "in messages if message['role'] != 'system'"))
    assert deaf.encode(demonstration("Why?", "So.")).num_tokens
    with pytest.raises(ExampleError, match="leaves out or alters a system turn"):
        deaf.encode(demonstration("Why?", "So.", system="Be brief."))
    thinks = chat("made here", ZEPHYR.replace("message['content']", "message['content'].split('</think>')[-1]"))
    assert thinks.encode(demonstration("Why?", "So.")).num_tokens
    with pytest.raises(ExampleError, match="the chat template alters a reply"):
        thinks.encode(demonstration("Why?", "<think>hm</think>So."))
    forgets = chat("made here", ZEPHYR.replace("in messages", "in (messages[-1:] if 'forget' in messages[-1]['content'] else messages)"))
    with pytest.raises(ExampleError, match="does not render the dialogue as the continuation"):
        forgets.encode(demonstration("Why?", "So.", "forget", "forget"))
    for name in ("llama-2", "gemma"):
        it = chat("made here", KNOWN[name].source, KNOWN[name].control)
        example = demonstration("Why?", "So.", system="Be brief.") if name == "gemma" else Example((), (turns("x", "So.")[1:],))
        with pytest.raises(ExampleError, match="the chat template refuses the dialogue"):
            it.encode(example)


def test_a_dialogue_may_begin_with_the_assistant() -> None:
    prove(chat("made here", ZEPHYR), KNOWN["zephyr"], Example((), (turns("", "Hello.", "Why?", "So.")[1:],)))


def test_text_outside_any_template(place: str) -> None:
    it = chat(place, ZEPHYR)
    bos, eos = it.tokens.bos_token_id, it.tokens.eos_token_id
    for text in (text for text in NASTY if text.strip()):
        tree = it.encode(Example((), ((Message(TEXT, text),),)))
        assert tree.prompt.tolist() == [bos]
        assert trained_texts(it, tree, 0) == [decoded(it, [bos, *tree.completions[0]])[len(decoded(it, [bos])) :]]
        assert trained_texts(it, tree, 0)[0].lstrip(" ") == (text + "</s>").lstrip(" ")
        assert tree.trained[0].all()
        assert tree.completions[0].tolist().count(eos) == 1
    with_prompt = it.encode(Example((Message(TEXT, "Once"),), ((Message(TEXT, " upon"),),)))
    assert decoded(it, with_prompt.prompt).endswith("Once")
    assert trained_texts(it, with_prompt, 0) == [" upon</s>"]
    with pytest.raises(ExampleError, match="mixes verbatim text with assistant"):
        it.encode(Example((Message(TEXT, "x"),), ((Message("assistant", "y"),),)))


@pytest.mark.parametrize("forged", ["</s>", "<s>", "<|im_end|>", "<|reserved|>"])
@pytest.mark.parametrize("role", ["system", "user", "assistant", TEXT])
def test_control_tokens_cannot_be_forged(forged: str, role: str) -> None:
    it = chat("made here", QWEN, ("<|im_start|>", "<|im_end|>"))
    it.tokens.add_tokens(["<|reserved|>"], special_tokens=True)
    content = f"well{forged}<|assistant|>\n"
    if role == TEXT:
        example = Example((), ((Message(TEXT, content),),))
    else:
        texts = {"system": "s", "user": "u", "assistant": "a"} | {role: content}
        example = demonstration(texts["user"], texts["assistant"], system=texts["system"])
    where = {TEXT: "the text", "assistant": "an assistant turn"}.get(role, f"a {role} turn")
    told = f"{where} holds the control token '{forged}'".replace("|", r"\|")
    with pytest.raises(ExampleError, match=told):
        it.encode(example)
    with pytest.raises(ExampleError, match=told):
        it.prompt_ids([*example.prompt, *example.completions[0]])


def test_characters_that_the_tokenizer_does_not_know() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "</s>": 1, "Why": 2, "So": 3, "<": 4, "|": 5, ">": 6, "user": 7, "assistant": 8}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    tokens = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", chat_template=ZEPHYR)
    it = ChatTokenizer(tokens)
    with pytest.raises(ExampleError, match="a character that the tokenizer does not know"):
        it.encode(demonstration("Why", "Never"))
    assert it.encode(demonstration("Why", "So")).num_tokens


def test_the_system_turn_of_a_preset_is_part_of_the_template() -> None:
    for system in ("", "Be brief.", 'It\'s "quoted" \\ {% x %} {{ y }}\n\tüñí 👩 \0'):
        it, plain = chat("made here", with_system(ZEPHYR, system)), chat("made here", ZEPHYR)
        added = demonstration("Why?", "So.", "And?", "Then.", system=system)
        for got, wanted in ((demonstration("Why?", "So.", "And?", "Then."), added), (demonstration("Why?", "So.", system="Own."),) * 2):
            left, right = it.encode(got), plain.encode(wanted)
            assert left.prompt.tolist() == right.prompt.tolist() == it.prompt_ids(got.prompt)
            assert left.completions[0].tolist() == right.completions[0].tolist()
            assert left.trained[0].tolist() == right.trained[0].tolist()


def test_opening(tmp_path: Path) -> None:
    made = byte_pairs([CODE], 300)
    made.chat_template = QWEN
    made.save_pretrained(tmp_path)
    assert open_tokenizer(str(tmp_path), template="auto").tokens.chat_template == QWEN
    assert open_tokenizer(str(tmp_path), template="zephyr").tokens.chat_template == ZEPHYR
    (tmp_path / "mine.jinja").write_text("ä" + ZEPHYR, "utf-8")
    mine = open_tokenizer(str(tmp_path), template=str(tmp_path / "mine.jinja"), system="Be brief.")
    assert mine.tokens.chat_template == with_system("ä" + ZEPHYR, "Be brief.")
    others = [open_tokenizer(str(tmp_path), template=name) for name in ("zephyr", "auto")]
    assert len({it.fingerprint() for it in (mine, *others)}) == 3
    assert mine.fingerprint() == pickle.loads(pickle.dumps(mine)).fingerprint()


def test_a_folder_is_read_once_while_its_files_stay_as_they_are(tmp_path: Path) -> None:
    byte_pairs([CODE], 300).save_pretrained(tmp_path / "it")
    mine = tmp_path / "mine.jinja"
    mine.write_text(ZEPHYR, "utf-8")
    opened = [open_tokenizer(str(tmp_path / "it"), template=str(mine)) for _ in range(2)]
    assert opened[0] is opened[1]
    mine.write_text("ä" + ZEPHYR, "utf-8")
    assert open_tokenizer(str(tmp_path / "it"), template=str(mine)).tokens.chat_template == "ä" + ZEPHYR
    byte_pairs([CODE], 290).save_pretrained(tmp_path / "it")
    assert len(open_tokenizer(str(tmp_path / "it"), template=str(mine)).tokens) < len(opened[0].tokens)


@pytest.mark.parametrize("damaged", [b"", QWEN.encode()[: len(QWEN) // 2], b"\x00\xff\xfe"])
@pytest.mark.parametrize("file", ["chat_template.jinja", "mine.jinja"])
def test_a_damaged_template_is_named_and_no_row_is(tmp_path: Path, file: str, damaged: bytes) -> None:
    byte_pairs([CODE], 300).save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(damaged)
    template = "auto" if file == "chat_template.jinja" else str(tmp_path / file)
    with pytest.raises(ZkitError) as caught:
        open_tokenizer(str(tmp_path), template=template).encode(demonstration("Why?", "So."))
    assert str(caught.value).startswith(f"{tmp_path / file}: ")
    assert "f:1" not in str(caught.value)


def test_a_tokenizer_that_was_saved_with_truncation_does_not_cut(tmp_path: Path) -> None:
    made = byte_pairs([CODE], 300)
    made.backend_tokenizer.enable_truncation(4)
    made.backend_tokenizer.enable_padding(length=8)
    made.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    byte_pairs([CODE], 300).save_pretrained(tmp_path / "other")
    (tmp_path / "tokenizer_config.json").write_text((tmp_path / "other" / "tokenizer_config.json").read_text())
    it = open_tokenizer(str(tmp_path), template="zephyr")
    prove(it, KNOWN["zephyr"], demonstration("Why? " * 20, "So. " * 20))


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=byte_pairs([], 258).backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ZkitError, match="no end-of-sequence token"):
        open_tokenizer(str(tmp_path), template="zephyr")


def test_too_many_turns_are_refused_at_once() -> None:
    it = chat("made here", ZEPHYR)
    with pytest.raises(ExampleError, match="has 10,000 turns, more than 1,000"):
        it.encode(demonstration(*["x"] * 10_000))
    assert MAX_TURNS == 1000


MARKED = ZEPHYR.replace(
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' -}}",
    "{{- '<|' + message['role'] + '|>\\n' -}}{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + eos_token -}}{%- endif -%}{{- '\\n' -}}",
)


def test_transformers_marks_the_same_tokens(mistral: ChatTokenizer) -> None:
    assert MARKED.count("generation -%}") == 2
    draw = random.Random(0)
    letters = "ab c\n\n  é👩😀,.<|>[]0"
    for _ in range(60):
        contents = ["".join(draw.choices(letters, k=draw.randint(1, 40))) + "x" for _ in range(2 * draw.randint(1, 4))]
        tree = mistral.encode(demonstration(*contents))
        messages = [{"role": message.role, "content": message.content} for message in turns(*contents)]
        theirs = mistral.tokens.apply_chat_template(messages, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True)
        ids = [*tree.prompt.tolist(), *tree.completions[0].tolist()]
        flags = [0] * len(tree.prompt) + tree.trained[0].astype(int).tolist()
        assert theirs["input_ids"][: len(ids)] == ids
        assert theirs["assistant_masks"][: len(ids)] == flags
        assert not any(theirs["assistant_masks"][len(ids) :])


def test_real_dialogues_are_trained_from_where_they_are_served(mistral: ChatTokenizer, shared: Path) -> None:
    rows = list(Jsonl(str(shared / "data" / "chat_sgd.jsonl.gz")).rows())
    assert len(rows) == 3000
    eos = mistral.tokens.eos_token_id
    for number, row in enumerate(rows):
        assert isinstance(row, Example)
        tree = mistral.encode(row)
        assert tree.prompt.tolist() == mistral.prompt_ids(row.prompt)
        replies = [message for message in row.completions[0] if message.role == "assistant"]
        assert (tree.completions[0][tree.trained[0]] == eos).sum() == len(replies)
        if number % 50 == 0:
            prove(mistral, KNOWN["zephyr"], row)
            whole = [*tree.prompt.tolist(), *tree.completions[0].tolist()]
            later = mistral.prompt_ids((*row.prompt, *row.completions[0][:2]))
            assert whole[: len(later)] == later, "later turns too stand as they are served"

"""Row formats: one small function for each, from the columns of a row to an `Example`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from zephyr_kit.example import TEXT, Example, ExampleError, Message, Removed, check_message
from zkit_sources.rated import Rated
from zkit_sources.turns import CONVERSATION_ROLES, MissingColumnError, Row, Turns, describe, number_of, required, text_of, turns_of

FormatName = Literal[
    "auto",
    "messages",
    "conversations",
    "alpaca",
    "prompt_completion",
    "labelled",
    "preference",
    "ultrachat",
    "ultrafeedback",
    "text",
    "prompt",
    "any_text",
]


@dataclass(frozen=True, slots=True)
class Format:
    """What a format is recognised by, and how its rows are read."""

    read: Callable[[Row], Example | Removed]
    needs: tuple[tuple[str, ...], ...]
    """Groups of columns; one of each group must be there."""
    also: tuple[str, ...] = ()
    """Columns that it reads where they are there."""
    unless: tuple[str, ...] = ()
    """Columns that tell of something else; only a format named in the preset overlooks them."""
    by_name: bool = False
    """It is meant only where a preset names it: its columns tell too little."""

    def fits(self, columns: Collection[str]) -> bool:
        """Whether columns tell that rows are in this format."""
        found = all(any(name in columns for name in group) for group in self.needs)
        return found and not self.by_name and not any(name in columns for name in self.unless)

    def columns(self) -> tuple[str, ...]:
        """Every column that it reads."""
        return (*(name for group in self.needs for name in group), *self.also)

    def __str__(self) -> str:
        layout = ", ".join([*(" or ".join(group) for group in self.needs), *(f"[{name}]" for name in self.also)])
        return f"{layout or 'any columns'}; only where it is named" if self.by_name else layout


def read_messages(row: Row) -> Example:
    """`messages`: a dialogue, learnt from its first assistant turn to its last."""
    return dialogue(turns_of(required(row, "messages"), "`messages`"))


def read_conversations(row: Row) -> Example:
    """`conversations`: a dialogue as ShareGPT writes it, with `from` and `value`."""
    turns = turns_of(required(row, "conversations"), "`conversations`", role="from", content="value", roles=CONVERSATION_ROLES)
    return dialogue(turns)


def read_alpaca(row: Row) -> Example:
    """`instruction`, perhaps with an `input` after a blank line, and `output` or `response`."""
    instruction = text_of(required(row, "instruction"), "`instruction`")
    material = text_of(row["input"], "`input`") if row.get("input") is not None else ""
    if "output" not in row and "response" not in row:
        raise MissingColumnError("output", "response")
    name = "output" if row.get("output") is not None or "response" not in row else "response"
    question = f"{instruction}\n\n{material}" if material.strip() else instruction
    return Example((Message("user", question),), ((Message("assistant", text_of(row[name], f"`{name}`")),),))


def read_prompt_completion(row: Row) -> Example:
    """`prompt` and `completion`, each a text or a list of messages."""
    prompt, completion = required(row, "prompt"), required(row, "completion")
    return Example(text_or_turns(prompt, "prompt", role="user"), (text_or_turns(completion, "completion", role="assistant"),))


def read_labelled(row: Row) -> Example:
    """`prompt`, `completion`, and a `label` that says whether it is a good one: its score is 1 or 0."""
    example, label = read_prompt_completion(row), required(row, "label")
    if label not in (True, False):
        raise ExampleError(f"`label` is {describe(label)}, not true or false")
    return replace(example, scores=(float(label),))


def read_text(row: Row) -> Example:
    """`text`: learnt as it stands, outside any chat template."""
    return Example((), ((Message(TEXT, text_of(required(row, "text"), "`text`")),),))


def read_preference(row: Row) -> Example:
    """`chosen` and `rejected`, as texts or as lists of messages, perhaps with a `prompt` and scores."""
    chosen, rejected, prompt = required(row, "chosen"), required(row, "rejected"), row.get("prompt")
    if isinstance(chosen, list) and isinstance(rejected, list):
        start, pair = split_pair(turns_of(chosen, "`chosen`"), turns_of(rejected, "`rejected`"), prompt)
    elif isinstance(chosen, list) or isinstance(rejected, list):
        raise ExampleError(f"`chosen` is {describe(chosen)} but `rejected` is {describe(rejected)}: give two texts or two lists of turns")
    else:
        pair = text_or_turns(chosen, "chosen", role="assistant"), text_or_turns(rejected, "rejected", role="assistant")
        start = text_or_turns(required(row, "prompt"), "prompt", role="user")
    return Example(start, pair, scores_of(row))


def read_ultrachat(row: Row) -> Example:
    """`data`: a dialogue as raw UltraChat writes it, texts of user and assistant in turn."""
    texts = required(row, "data")
    if not isinstance(texts, list):
        raise ExampleError(f"`data` is {describe(texts)}, not a list of texts")
    named = [text_of(text, f"turn {number} of `data`") for number, text in enumerate(texts, 1)]
    return dialogue(tuple(Message(("user", "assistant")[number % 2], text) for number, text in enumerate(named)))


def read_prompt(row: Row) -> Example:
    """`prompt`, a text or a list of messages, with nothing after it: to be answered, not learnt."""
    return Example(text_or_turns(required(row, "prompt"), "prompt", role="user"), ())


def read_any_text(row: Row) -> Example:
    """Every text of a row, however deep, as one verbatim completion: to be looked through, not learnt."""
    texts = tuple(Message(TEXT, text_of(text, "a text of the row")) for text in texts_in(row) if text.strip())
    if not texts:
        raise ExampleError("the row holds no text")
    return Example((), (texts,))


def texts_in(value: Any) -> Iterator[str]:
    """Every text within a value, in order; what is no text is passed over, names of columns too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(item)


TURNS_LEFT_OUT = "turns after the last reply left out"
BLANK_TURN = "a blank user turn"


def dialogue(turns: Turns) -> Example:
    """Everything before the first assistant turn is the prompt; what follows the last is left out, and noted."""
    spoken = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    if not spoken:
        for turn in turns:
            check_message(turn)  # a misspelt role is the likelier reason
        raise ExampleError("no assistant turn to learn from" if turns else "the list of turns is empty")
    kept = turns[: spoken[-1] + 1]
    return Example(kept[: spoken[0]], (kept[spoken[0] :],), notes=notes_on(kept, num_left_out=len(turns) - len(kept)))


def notes_on(kept: Turns, *, num_left_out: int) -> tuple[str, ...]:
    """What is worth counting about a dialogue, each thing once."""
    blank = any(turn.role == "user" and not turn.content.strip() for turn in kept)
    return tuple(note for note, holds in ((TURNS_LEFT_OUT, num_left_out > 0), (BLANK_TURN, blank)) if holds)


def text_or_turns(value: Any, name: str, *, role: str) -> Turns:
    """A text as one turn of `role`, a list as the messages it holds."""
    if isinstance(value, list):
        return turns_of(value, f"`{name}`")
    return (Message(role, text_of(value, f"`{name}`")),)


def split_pair(chosen: Turns, rejected: Turns, prompt: Any) -> tuple[Turns, tuple[Turns, Turns]]:
    """The prompt of two dialogues, from its own column or from what they share, and the two rests."""
    given = () if prompt is None else text_or_turns(prompt, "prompt", role="user")
    bare = all(not turns or turns[0].role == "assistant" for turns in (chosen, rejected))
    if given and bare:
        return given, (chosen, rejected)
    start = shared_prompt(chosen, rejected)
    if isinstance(prompt, list) and given:
        start = given if chosen[: len(given)] == given == rejected[: len(given)] else ()
    if not start or (given and not agrees(given, start)):
        raise ExampleError("`chosen` and `rejected` do not begin with the same prompt" + (" as `prompt`" if given else ""))
    return start, (chosen[len(start) :], rejected[len(start) :])


def shared_prompt(chosen: Turns, rejected: Turns) -> Turns:
    """The turns that both begin with, up to the last user turn among them."""
    pairs = list(zip(chosen, rejected, strict=False))
    shared = next((number for number, (left, right) in enumerate(pairs) if left != right), len(pairs))
    asked = [number for number in range(shared) if chosen[number].role == "user"]
    return chosen[: asked[-1] + 1] if asked else ()


def agrees(given: Turns, start: Turns) -> bool:
    """Whether a prompt column repeats one of the user turns, or the turns, of the shared prompt."""
    asked = {turn.content.strip() for turn in start if turn.role == "user"}
    return given == start or (len(given) == 1 and given[0].content.strip() in asked)


SCORE_COLUMNS = (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"))
"""Those of ultrafeedback_binarized, and those of Argilla's."""


def scores_of(row: Row) -> tuple[float, float] | None:
    """The scores of chosen and rejected, when the row has them."""
    for names in SCORE_COLUMNS:
        values = [row.get(name) for name in names]
        if values != [None, None]:
            chosen, rejected = (number_of(value, f"`{name}`") for name, value in zip(names, values, strict=True))
            return chosen, rejected
    return None


FORMATS: Mapping[str, Format] = {
    "preference": Format(
        read_preference, (("chosen",), ("rejected",)), also=("prompt", *(name for names in SCORE_COLUMNS for name in names))
    ),
    "messages": Format(read_messages, (("messages",),)),
    "conversations": Format(read_conversations, (("conversations",),)),
    "ultrachat": Format(read_ultrachat, (("data",),)),
    "ultrafeedback": Format(Rated().read, (("instruction",), ("completions",))),
    "prompt_completion": Format(read_prompt_completion, (("prompt",), ("completion",)), unless=("label",)),
    "labelled": Format(read_labelled, (("prompt",), ("completion",), ("label",)), by_name=True),
    "alpaca": Format(read_alpaca, (("instruction",), ("output", "response")), also=("input",)),
    "text": Format(read_text, (("text",),)),
    "prompt": Format(read_prompt, (("prompt",),), by_name=True),
    "any_text": Format(read_any_text, (), by_name=True),
}
"""By name, in the order they are looked for: the first that fits is it."""

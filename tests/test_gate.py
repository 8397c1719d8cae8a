"""What is measured of a stage's data agrees with counting by hand, and a gate stops what goes beyond its thresholds."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr_kit import inspection
from zephyr_kit.admission import Door
from zephyr_kit.batch import Tree
from zephyr_kit.binarise import Binarise
from zephyr_kit.corpus import DataError, prepare
from zephyr_kit.example import BadRow, Example, ExampleError, Message, completion_name
from zephyr_kit.gate import Gate, refuse, thresholds
from zephyr_kit.inspection import Inspection
from zephyr_kit.plugins import Plugins
from zephyr_kit.portion import Portion
from zephyr_kit.preset import PresetError, resolve


@dataclass(frozen=True)
class Letters:
    """A token for each letter; replies are trained, and `.` ends one. It forgets capitals, doubles blanks and cannot write `#`."""

    def encode(self, example: Example) -> Tree:
        prompt, *completions = ("".join(message.content for message in part) for part in (example.prompt, *example.completions))
        if "#" in prompt:
            raise ExampleError("holds a #")
        flags = [np.concatenate([np.full(len(m.content), m.role == "assistant") for m in part]) for part in example.completions]
        return Tree(self._ids(prompt), tuple(map(self._ids, completions)), tuple(flags))

    def render(self, example: Example) -> list[str]:
        prompt, *completions = ("".join(message.content for message in part) for part in (example.prompt, *example.completions))
        return [prompt + completion for completion in completions]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [chr(one).replace(" ", "  ") for one in ids]

    @property
    def ends(self) -> frozenset[int]:
        return frozenset({ord(".")})

    def fingerprint(self) -> str:
        return "letters"

    def _ids(self, text: str) -> np.ndarray:
        return np.array([ord(letter) for letter in text.lower()], np.int32)


@dataclass(frozen=True)
class Given:
    """A tokenizer that knows the tree of each row by its origin."""

    trees: dict[str, Tree] = field(default_factory=dict)
    name: str = ""

    def encode(self, example: Example) -> Tree:
        return self.trees[example.origin]

    def fingerprint(self) -> str:
        return self.name

    @property
    def ends(self) -> frozenset[int]:
        return frozenset({0, 3})


@dataclass(frozen=True)
class Rows:
    """Rows at hand."""

    given: tuple[Example | BadRow, ...]

    def rows(self) -> Iterator[Example | BadRow]:
        return iter(self.given)

    def fingerprint(self) -> str:
        return repr(self.given)

    def problems(self) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> Rows:
        return self


def rows(*texts: str) -> tuple[Example, ...]:
    """`prompt>completion>completion`."""
    split = [text.split(">") for text in texts]
    replies = [tuple((Message("assistant", reply),) for reply in completions) for _, *completions in split]
    prompts = [(Message("user", prompt),) for prompt, *_ in split]
    return tuple(Example(prompt, reply, origin=f"row:{n}") for n, (prompt, reply) in enumerate(zip(prompts, replies, strict=True), 1))


def inspect(folder: Path, *given: Example | BadRow, completions: int = 1, **door: object) -> Inspection:
    portions = [Portion(Rows(given))]
    corpus = prepare(portions, Letters(), Door(completions, **{"max_length": 20, "too_long": "cut", **door}), cache=folder)
    return Inspection(corpus, Letters(), portions)


def told(part: inspection.Part) -> tuple[int, int]:
    return part.count, part.whole


def faults(one: Inspection, name: str, **least: float) -> list[tuple[str, str]]:
    return [(fault.origin, fault.reason) for fault in one.faults(name, **least)]


DIRT = rows("ask>say.", "ask>say.", "asks>ay.", "ask>no end", f"ask>{'long ' * 9}.", "a#k>say.", "ask>say.", "ask>  ")


def test_the_measures_of_dialogues(tmp_path):
    one = inspect(tmp_path, *DIRT, BadRow("row:9", "no text"))
    assert told(one.examples) == (6, 9)
    assert told(one.truncated) == (1, 6)
    assert told(one.bad) == (3, 9)
    assert told(one.dropped) == (0, 9)
    assert told(one.duplicates) == (2, 6), "`asks>ay.` holds the same letters, but parts them elsewhere"
    assert faults(one, "duplicates") == [("row:2", "the same as row:1"), ("row:7", "the same as row:1")]
    assert told(one.ended) == (4, 6)
    assert faults(one, "ended") == [("row:4", "the completion is not trained to end"), ("row:5", "the completion is not trained to end")]
    assert faults(one, "truncated") == [("row:5", "cut to max_length = 20 tokens")]
    assert told(one.trained) == (4 + 4 + 3 + 6 + 17 + 4, 7 + 7 + 7 + 9 + 20 + 7)
    assert faults(one, "trained", least=0.5) == [("row:3", "3 of 7 tokens are trained")]
    assert one.chosen_longer is None
    assert {name: values.tolist() for name, values in one.lengths.items()} == {
        "prompt": [3, 3, 4, 3, 3, 3],
        "completion": [4, 4, 3, 6, 17, 4],
        "whole": [7, 7, 7, 9, 20, 7],
        "trained": [4, 4, 3, 6, 17, 4],
    }


def test_the_measures_of_pairs(tmp_path):
    given = rows("ask>good.>bad.", "ask>no>longer.", "ask>same>same", "ask>Same>same", f"ask>{'x' * 20}y>{'x' * 20}z", "ask>good.>bad.")
    one = inspect(tmp_path, *given, completions=2)
    assert told(one.identical) == (3, 6), "as they are, in tokens, and once they are cut"
    assert [origin for origin, _ in faults(one, "identical")] == ["row:3", "row:4", "row:5"]
    assert told(one.chosen_longer) == (2, 3)
    assert told(one.ended) == (5, 6)
    assert faults(one, "ended") == [("row:2", "chosen is not trained to end")]
    assert told(one.shared) == (9, 45)
    assert one.lengths["rejected"].tolist() == [4, 7, 4]
    assert one.lengths["whole"].tolist() == [8, 10, 8]


def test_all_pairs_of_rated_rows_are_counted_as_examples(tmp_path):
    """10 rows make 60 examples; two pairs in three of each hold what is too long, and one row cannot be read."""
    rated = rows(*[f"ask>one.>two.>{'long ' * 9}.>{'longer ' * 9}."] * 10)
    given = (*(replace(row, scores=(4.0, 3.0, 2.0, 1.0)) for row in rated), replace(rated[0], scores=(1.0,), origin="row:11"))
    portions = [Portion(Rows(given), binarise=Binarise("all_pairs"))]
    corpus = prepare(portions, Letters(), Door(2, 20, "drop"), cache=tmp_path)
    one = Inspection(corpus, Letters(), portions)
    assert told(one.dropped) == (50, 61)
    assert told(one.bad) == (1, 61)
    assert told(one.examples) == (10, 61)
    assert told(one.removed) == (0, 11)
    assert one.dropped.told == "50 of 61 examples are dropped for their length (81.97%)"
    refuse(Gate(max_dropped=0.9, max_identical=0.0), one, name="stages.dpo.data", listing=tmp_path / "list.jsonl")
    assert [trip.origin for trip in one.trips[:3]] == ["row:1 (1 over 2)", "row:1 (1 over 3)", "row:1 (1 over 4)"], (
        "pairs are decoded, not rows"
    )
    assert len(one.trips) == 60


def test_pairs_that_are_the_same_in_tokens_are_counted_as_examples(tmp_path):
    (row,) = rows("ask>Same>same>SAME>other")
    portions = [Portion(Rows((replace(row, scores=(4.0, 3.0, 2.0, 1.0)),)), binarise=Binarise("all_pairs"))]
    one = Inspection(prepare(portions, Letters(), Door(2, 20, "cut"), cache=tmp_path), Letters(), portions)
    assert told(one.identical) == told(one.bad) == (3, 6)


def test_dropped_rows_are_faults(tmp_path):
    one = inspect(tmp_path, *DIRT, too_long="drop")
    assert told(one.dropped) == (1, 8)
    assert faults(one, "dropped") == [("row:5", "longer than max_length = 20 tokens")]


def test_what_decoding_does_not_give_back(tmp_path):
    one = inspect(tmp_path, *rows("ask>say.", "Ask>say.", "ask>say it.", "a#k>say.", "ask>  "))
    assert told(one.altered) == (2, 3), "what cannot be encoded is not decoded"
    assert faults(one, "altered") == [("row:2", inspection.MORE_THAN_BLANKS), ("row:3", inspection.BLANKS)]


def test_held_out_examples_that_are_trained_on(tmp_path):
    data, held_out = inspect(tmp_path, *DIRT), inspect(tmp_path, *rows("ask>say.", "new>say.", "ask>no end", "ask>say."))
    assert told(data.leaked(held_out)) == (3, 4)


@st.composite
def forests(draw) -> list[Tree]:
    def ids(smallest: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(0, 4), min_size=smallest, max_size=6)), np.int32)

    def tree() -> Tree:
        replies = tuple(ids(2) for _ in range(count))
        flags = [np.array(draw(st.lists(st.booleans(), min_size=len(reply), max_size=len(reply)))) for reply in replies]
        return Tree(ids(0), replies, tuple(flags))

    count = draw(st.integers(1, 3))
    return [tree() for _ in range(draw(st.integers(1, 12)))]


@given(forests(), st.integers(1, 9))
def test_all_is_as_counted_one_by_one(tmp_path_factory, trees, block):
    examples = rows(*(">".join(["ask", *map(str, range(len(trees[0].completions)))]) for _ in trees))
    tokenizer = Given({example.origin: tree for example, tree in zip(examples, trees, strict=True)}, repr(trees))
    portions = [Portion(Rows(examples))]
    corpus = prepare(portions, tokenizer, Door(len(trees[0].completions), 9, "cut"), cache=tmp_path_factory.mktemp("corpora"))
    if not corpus.ledger["kept"]:
        return
    kept = [corpus[index] for index in range(len(corpus))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "BLOCK", block)
        one = Inspection(corpus, tokenizer, portions)
        last = [int(ids[np.flatnonzero(flags)[-1]]) for tree in kept for ids, flags in zip(tree.completions, tree.trained, strict=True)]
        assert told(one.ended) == (sum(token in (0, 3) for token in last), len(last))
        assert len(faults(one, "ended")) == one.ended.whole - one.ended.count
    contents = [tuple(tuple(piece.tolist()) for piece in (tree.prompt, *tree.completions)) for tree in kept]
    assert told(one.duplicates) == (len(contents) - len(set(contents)), len(contents))
    names = [completion_name(n, len(kept[0].completions)).removeprefix("the ") for n in range(len(kept[0].completions))]
    for place, name in enumerate(names):
        assert one.lengths[name].tolist() == [len(tree.completions[place]) for tree in kept]
    assert one.lengths["whole"].tolist() == [len(tree.prompt) + max(map(len, tree.completions)) for tree in kept]


MOST = {"max_truncated": 1 / 6, "max_duplicates": 2 / 6, "max_altered": 2 / 6}
LIMITS = {**MOST, "min_trained": 38 / 57, "min_ended": 4 / 6, "min_examples": 6}


@pytest.mark.parametrize("key", LIMITS)
def test_a_threshold_holds_up_to_its_limit_and_not_beyond(key, tmp_path):
    one = inspect(tmp_path, *DIRT)
    just = Gate(**{key: LIMITS[key]})
    refuse(just, one, name="stages.sft.data", listing=tmp_path / "list.jsonl")
    step = (1 if key == "min_examples" else 1e-6) * (-1 if key.startswith("max_") else 1)
    beyond = Gate(**{key: LIMITS[key] + step})
    (threshold,) = thresholds(beyond, one)
    assert not threshold.passed
    with pytest.raises(DataError, match=f"{key} = "):
        refuse(beyond, one, name="stages.sft.data", listing=tmp_path / "list.jsonl")


def test_a_refusal_names_key_limit_figure_and_rows(tmp_path):
    one, listing = inspect(tmp_path, *DIRT, BadRow("row:9", "no text")), tmp_path / "sft.data.gate.jsonl"
    gate = Gate(max_truncated=0.5, max_duplicates=0.01, min_ended=0.9, min_examples=7)
    with pytest.raises(DataError) as caught:
        refuse(gate, one, name="stages.sft.data", listing=listing)
    assert str(caught.value).splitlines() == [
        "stages.sft.data does not pass its gate:",
        "  max_duplicates = 0.01, but 2 of 6 examples equal an earlier one (33.33%)",
        "    row:2: the same as row:1",
        "    row:7: the same as row:1",
        "  min_ended = 0.9, but 4 of 6 completions are trained to end (66.67%)",
        "    row:4: the completion is not trained to end",
        "    row:5: the completion is not trained to end",
        "  min_examples = 7, but 6 of 9 examples are kept (66.67%)",
        f"all are in {listing}; mend the data, or set other thresholds in stages.sft.gate",
    ]
    assert [(row["gate"], row["origin"]) for row in map(json.loads, listing.read_text().splitlines())] == [
        ("max_duplicates", "row:2"),
        ("max_duplicates", "row:7"),
        ("min_ended", "row:4"),
        ("min_ended", "row:5"),
    ]
    refuse(Gate(max_truncated=0.5), one, name="stages.sft.data", listing=listing)
    assert not listing.exists(), "a list of what has been mended misleads"


def test_only_the_first_rows_are_named_and_all_are_listed(tmp_path):
    one, listing = inspect(tmp_path, *rows(*["ask>no end"] * 9)), tmp_path / "list.jsonl"
    with pytest.raises(DataError, match=r"\n    row:3: .+\n    …\n"):
        refuse(Gate(min_ended=0.9), one, name="stages.sft.data", listing=listing)
    assert len(listing.read_text().splitlines()) == 9


def test_an_open_gate_measures_nothing(tmp_path):
    refuse(Gate(), Inspection(None, None, None), name="stages.sft.data", listing=tmp_path / "list.jsonl")


def preset(gate: str) -> str:
    return f"""
name = "tiny"
[model]
use = "mistral"
weights = "nowhere"
[stages.sft]
objective = "sft"
data = [{{ use = "quickstart", part = "chat", count = 8 }}]
gate = {gate}
train = {{ steps = 2, examples_per_step = 4, learning_rate = 1e-3 }}
"""


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("{ max_truncatd = 0.02 }", "did you mean `max_truncated`"),
        ("{ max_truncated = 2 }", "max_truncated"),
        ("{ min_examples = 0 }", "min_examples"),
        ("{ min_examples = 0.5 }", "min_examples"),
    ],
)
def test_a_gate_is_checked_with_the_preset(gate, message):
    with pytest.raises(PresetError, match=message):
        resolve(tomllib.loads(preset(gate)), Plugins().offers, file="tiny.toml")


def test_a_gate_is_part_of_a_preset():
    resolved = resolve(tomllib.loads(preset("{ max_truncated = 0.02, min_examples = 5 }")), Plugins().offers, file="tiny.toml")
    assert resolved.stages[0].task.gate == Gate(max_truncated=0.02, min_examples=5)

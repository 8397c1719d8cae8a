"""`zkit preview`: what is shown is what would be trained on, in a terminal and on a page that stands alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny import write_model
from zkit_mistral.backend import Mistral
from zkit_mistral.tokenizer import ChatTokenizer, open_tokenizer

from zephyr_kit import cli
from zephyr_kit.cli.passages import SHOWN, passages, runs, visible
from zephyr_kit.cli.preview_page import page
from zephyr_kit.cli.preview_terminal import show
from zephyr_kit.cli.views import Shown, View, _batches
from zephyr_kit.example import TEXT, Example, Message
from zephyr_kit.inspection import BLANKS, Inspection
from zephyr_kit.lengths import measured
from zephyr_kit.portion import Portion
from zephyr_kit.preset import Needs, Preset

FORGED = '<script src="https://example.org/x.js">alert("no")</script> & \x07'


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def preset(weights: Path, tmp_path: Path) -> Path:
    """Two stages; a dialogue with two replies, one that is far too long, one twice, one of which nothing remains."""
    turns = [["Hi", "Hello.", "Why?", FORGED], ["Say a lot", "long " * 300], ["Once", "more"], ["Once", "more"], ["Nothing", " "]]
    rows = [[{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(dialogue)] for dialogue in turns]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    pair = {"prompt": "Which?", "chosen": "This one.", "rejected": "That."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    path = tmp_path / "small.toml"
    path.write_text(f"""
name = "small"
[model]
use = "mistral"
weights = '{weights}'
dtype = "float32"
template = "zephyr"
[stages.sft]
objective = "sft"
data = [{{ use = "jsonl", path = '{tmp_path / "chat.jsonl"}' }}]
held_out = [{{ use = "jsonl", path = '{tmp_path / "chat.jsonl"}', limit = 1 }}]
max_length = 512
bad_rows = 0.5
train = {{ steps = 2, examples_per_step = 4, learning_rate = 1e-3 }}
[stages.dpo]
objective = "dpo"
data = [{{ use = "jsonl", path = '{tmp_path / "pairs.jsonl"}' }}]
max_length = 512
train = {{ steps = 2, examples_per_step = 4, learning_rate = 1e-3 }}
""")
    return path


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, with wide lines; and no model is ever loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Mistral, "load", load)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return caught.value.code, captured.out, captured.err


def line(out: str, name: str) -> list[str]:
    """The values of the first figure of this name."""
    found = re.search(rf"^{name}  +(.+)$", out, re.MULTILINE)
    assert found, out
    return re.split(r"  +", found[1].rstrip())


class Reader(HTMLParser):
    """What a page says: its tags, what is marked, and the text of each token with its title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.marked: list[str] = []
        self.tokens: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "mark":
            self.marked.append("")
        if (title := dict(attrs).get("title") or "").startswith("token "):
            self.tokens.append((title, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "mark" in self.open:
            self.marked[-1] += data
        if self.tags and "title" in self.tags[-1][1] and self.open[-1] == "span":
            self.tokens[-1] = (self.tokens[-1][0], data)


def test_a_copy_of_data_that_is_known_is_told_by_its_own_name(preset, tmp_path, capsys):
    code, before, _ = call(capsys, "preview", preset, "--stage", "sft")
    assert (code, "chat.jsonl:1" in before) == (0, True)
    (tmp_path / "chat.jsonl").rename(tmp_path / "talk.jsonl")
    preset.write_text(preset.read_text().replace("chat.jsonl", "talk.jsonl"))
    code, after, _ = call(capsys, "preview", preset, "--stage", "sft")
    assert (code, after) == (0, before.replace("chat.jsonl", "talk.jsonl"))


def test_figures_and_examples_in_a_terminal(preset, capsys):
    code, out, _ = call(capsys, "preview", preset, "--examples", 9)
    assert code == 0
    assert line(out, "rows read")[:2] == ["5", "1"]
    assert line(out, "examples kept")[:2] == ["4", "1"]
    assert line(out, "cut")[:2] == ["1 (25.00%)", "0"]
    assert line(out, "duplicates")[:2] == ["1 (25.00%)", "0"]
    assert line(out, "ended")[:2] == ["3 (75.00%)", "1 (100.00%)"]
    assert line(out, "altered")[:2] == ["0 of 4", "0 of 1"]
    assert line(out, "leaked")[0] == "1 (100.00%)"
    assert "«Hello.</s>»⏎" in out
    assert f"«{visible(FORGED)}</s>»" in out
    assert "«This one.</s>»" in out
    assert "«That.</s>»" in out
    assert "tokens left out" in out
    assert "an assistant turn is empty" in out
    assert [path.name for path in preset.parent.iterdir()].count("runs") == 0


def test_colours_stand_for_brackets_where_there_are_any(weights):
    tokenizer = open_tokenizer(str(weights), template="zephyr")
    example = Example((Message("user", "Hi"),), ((Message("assistant", "Hello"),),))
    console = Console(force_terminal=True, color_system="truecolor", width=80, record=True, file=StringIO())
    show(console, View("sft", "", examples=(Shown("row:1", tuple(passages(tokenizer.encode(example), tokenizer))),)))
    text = console.export_text(styles=True)
    assert "«" not in text
    assert "\x1b[1;32mHello</s>" in text
    assert "\x1b[2m<s><|user|>⏎" in text


def test_a_gate_fails_the_preview_after_all_is_shown(preset, capsys):
    code, out, err = call(capsys, "preview", preset, "--set", "stages.sft.gate.max_duplicates=0.1", "--html", "page.html")
    assert code == 1
    assert "the data of sft would be refused" in err
    assert re.search(r"max_duplicates = 0.1 +✗ fails +1 of 4 examples equal an earlier one", out)
    assert "chosen" in out
    text = Path("page.html").read_text("utf-8")
    assert re.search(r'href="#sft">sft <span class="bad">✗ refused', text)
    assert re.search(r'href="#dpo">dpo <span class="good">✓ may train', text)


def test_a_gate_stops_a_run_before_its_first_step(preset, capsys):
    code, _, err = call(capsys, "run", preset, "--output", "run", "--set", "stages.sft.gate.max_duplicates=0.1")
    assert code == 6
    assert "stages.sft.data does not pass its gate" in err
    assert "chat.jsonl:4: the same as " in err
    assert json.loads(Path("run/sft.data.gate.jsonl").read_text())["gate"] == "max_duplicates"
    assert not list(Path("run").rglob("metrics.jsonl"))


def test_what_a_run_would_refuse_is_shown_and_refused(preset, capsys):
    code, out, err = call(capsys, "preview", preset, "--set", "stages.sft.bad_rows=0.1", "--set", "stages.dpo.max_length=600")
    assert code == 1
    assert "the data of sft and dpo would be refused" in err
    assert "1 of 5 rows are bad" in out
    assert "the model has 512 positions" in out


def test_data_of_which_nothing_is_left(preset, capsys):
    setting = ("--set", "stages.sft.max_length=3", "--set", "stages.sft.bad_rows=1.0")
    code, out, _ = call(capsys, "preview", preset, *setting, "--stage", "sft", "--html", "page.html")
    assert code == 1
    assert "none of 5 rows is left" in out
    assert line(out, "examples kept")[:2] == ["0", "0"]
    assert "none of 5 rows is left" in Path("page.html").read_text("utf-8")


def test_the_page_stands_alone_and_marks_what_is_trained(preset, capsys):
    assert call(capsys, "preview", preset, "--examples", 9, "--html", "page.html")[0] == 0
    reader = Reader(Path("page.html").read_text("utf-8"))
    assert reader.open == []
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "link", "img", "iframe", "object"}
    assert {value[0] for _, attributes in reader.tags for key, value in attributes.items() if key in ("href", "src")} == {"#"}
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in reader.tags
    assert "Hello.</s>" in reader.marked
    assert visible(FORGED) + "</s>" in reader.marked
    assert reader.marked[-2:] == ["This one.</s>", "That.</s>"]
    assert len({value for _, attributes in reader.tags if (value := attributes.get("id"))}) == 2
    assert ("token 1, trained, ends a reply", "</s>") in reader.tokens


def test_one_stage_fewer_rows_fewer_examples(preset, capsys):
    code, out, _ = call(capsys, "preview", preset, "--stage", "sft", "--limit", 3, "--examples", 0)
    assert code == 0
    assert line(out, "rows read")[:2] == ["3", "1"]
    assert "chosen" not in out
    assert "trained tokens are" not in out


def test_counts_are_not_judged_when_not_all_is_read(preset, capsys):
    gate = ("--set", "stages.sft.gate.min_examples=4", "--set", "stages.sft.gate.max_truncated=0.5", "--stage", "sft")
    code, out, _ = call(capsys, "preview", preset, *gate, "--limit", 3, "--html", "page.html")
    assert code == 0
    assert re.search(r"min_examples = 4 +– not judged +not all rows are read; 3 of 3 examples are kept", out)
    assert re.search(r"max_truncated = 0.5 +✓ passes", out)
    assert "at most 3 rows of each table are read" in out
    text = Path("page.html").read_text("utf-8")
    assert re.search(r"min_examples = 4</code></th><td class=\"soft\">– not judged", text)
    assert "at most 3 rows of each table are read" in text
    assert call(capsys, "preview", preset, *gate)[0] == 0
    code, out, _ = call(capsys, "preview", preset, "--set", "stages.sft.gate.min_examples=5")
    assert code == 1
    assert re.search(r"min_examples = 5 +✗ fails", out)


def test_shares_are_judged_by_the_rows_that_are_read(preset, capsys):
    code, out, _ = call(capsys, "preview", preset, "--set", "stages.sft.gate.max_truncated=0.1", "--limit", 3)
    assert code == 1
    assert re.search(r"max_truncated = 0.1 +✗ fails", out)


def test_one_batch_is_one(preset, capsys):
    assert "of 1 batch each, on one device" in call(capsys, "preview", preset, "--stage", "dpo")[1]
    assert [_batches(mean) for mean in (1.0, 2.0, 2.5)] == ["1 batch", "2 batches", "2.5 batches"]


def test_the_page_names_the_data_as_its_table_does(preset, capsys):
    assert call(capsys, "preview", preset, "--set", 'stages.sft.data[0].filters=["truecase"]', "--html", "page.html")[0] == 0
    text = Path("page.html").read_text("utf-8")
    assert f"of jsonl: path = &#34;{preset.parent / 'chat.jsonl'}&#34;<" in text
    assert "Jsonl(" not in text


def test_a_stage_that_is_not_there(preset, capsys):
    code, _, err = call(capsys, "preview", preset, "--stage", "dop")
    assert code == 1
    assert "no stage `dop` trains; did you mean `dpo`?" in err


def test_data_and_weights_that_are_not_there(preset, capsys):
    gone = 'stages.dpo.data=[{use="jsonl",path="gone.jsonl"}]'
    code, _, err = call(capsys, "preview", preset, "--set", "model.weights=/no/where", "--set", gone)
    assert code == 1
    assert "gone.jsonl" in err
    assert "there is no such folder (/no/where)" in err
    assert "cannot be previewed here" in err
    assert "--smoke" in err


def test_rows_that_an_earlier_stage_has_yet_to_gather(capsys):
    code, out, _ = call(capsys, "preview", "quickstart", "--stage", "dpo", "--html", "page.html")
    assert code == 0
    assert "dpo: not there yet" in out
    assert "not there yet" in Path("page.html").read_text("utf-8")


def test_a_miniature(preset, capsys):
    code, out, _ = call(capsys, "preview", preset, "--smoke", "--examples", 1)
    assert code == 0
    assert "jsonl:1" in out
    assert not Path("runs").exists()


def test_what_filters_did_is_shown_with_samples():
    samples = {
        "removed": [{"origin": "rows:7", "reason": "disclaims", "before": "As an <AI>"}],
        "changed": [{"origin": "rows:8", "reason": "one i", "before": "so i said", "after": "so I said"}],
    }
    tally = {"name": "truecase", "seen": 10, "removed": 1, "changed": 4, "reasons": {"disclaims": 1, "one i": 4}, "samples": samples}
    view = View("sft", "", portions=[{"source": "chat", "sieve": {"filters": [tally]}}, {"source": "plain"}])
    console = Console(width=160, record=True, file=StringIO())
    show(console, view)
    text = console.export_text()
    assert "filter truecase: 1 removed and 4 changed of 10" in text
    assert "rows:7: disclaims" in text
    assert "after: so I said" in text
    html = page(Preset("p", "p.toml", 0, Needs(), (), (), {}), [view])
    assert "As an &lt;AI&gt;" in html
    assert "so I said" in html
    assert Reader(html).open == []


def test_a_long_passage_is_shown_without_its_middle(weights):
    tokenizer = open_tokenizer(str(weights), template="zephyr")
    example = Example((Message(TEXT, ""),), ((Message(TEXT, "".join(chr(97 + n % 26) for n in range(2 * SHOWN))),),))
    *_, passage = passages(tokenizer.encode(example), tokenizer)
    first, left_out, last = passage.parts
    assert len(first) == len(last) == SHOWN // 2
    assert len(first) + left_out + len(last) == len(passage.tokens)
    assert [*first, *passage.tokens[SHOWN // 2 : -(SHOWN // 2)], *last] == list(passage.tokens)


def test_passages_are_the_tree(weights):
    tokenizer = open_tokenizer(str(weights), template="zephyr")
    replies = tuple((Message("assistant", text),) for text in ("Schön 🎉", "no"))
    tree = tokenizer.encode(Example((Message("user", "Why\tso?"),), replies))
    prompt, chosen, rejected = passages(tree, tokenizer)
    assert [one.name for one in (prompt, chosen, rejected)] == ["prompt", "chosen", "rejected"]
    assert [token.id for token in chosen.tokens] == tree.completions[0].tolist()
    assert [token.trained for token in chosen.tokens] == tree.trained[0].tolist()
    assert "".join(token.text for token in chosen.tokens) == "Schön 🎉</s>"
    assert [trained for trained, _ in runs([*prompt.tokens, *rejected.tokens])] == [False, True]
    assert visible("a\tb\n\x07") == "a⇥\tb⏎\n\\x07"


TEXTS = ["Hi", " two  blanks ", "Schön 🎉 👩‍👩‍👧", "a\n\n b\tc", "日本語", "e\u0301", "\ufffd"]


@pytest.fixture(params=["bytes", "mistral-7b-v0.1-tokenizer", "stories260k"])
def tokenizer(request: pytest.FixtureRequest, weights: Path) -> ChatTokenizer:
    place = weights if request.param == "bytes" else request.getfixturevalue("shared") / "models" / request.param
    return open_tokenizer(str(place), template="zephyr")


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_tokens_join_to_what_they_decode_to(tokenizer, text):
    example = Example((Message("user", text),), ((Message("assistant", "Because " + text),),))
    tree = tokenizer.encode(example)
    ids = [*tree.prompt.tolist(), *tree.completions[0].tolist()]
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.tokens.decode(ids)
    (rendered,) = tokenizer.render(example)
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", rendered)
    assert ids[-1] in tokenizer.ends


def test_real_dialogues_come_back_word_for_word(shared, tmp_path):
    from zkit_sources.files import Jsonl

    portions = [Portion(Jsonl(path=str(shared / "data" / "chat_sgd.jsonl.gz")), limit=50)]
    mistral = Inspection(None, open_tokenizer(str(shared / "models" / "mistral-7b-v0.1-tokenizer"), template="zephyr"), portions)
    assert (mistral.altered.count, mistral.altered.whole) == (0, 50)
    small = Inspection(None, open_tokenizer(str(shared / "models" / "stories260k"), template="zephyr"), portions)
    assert {trip.reason for trip in small.trips} == {BLANKS}, "it writes a blank after each control token"


def test_real_preferences(shared, capsys, preset):
    path = shared / "data" / "preference_pandalm.jsonl.gz"
    changes = ("--set", f'stages.dpo.data=[{{use="jsonl",path="{path}"}}]', "--set", "stages.dpo.bad_rows=0.2")
    code, out, _ = call(capsys, "preview", preset, "--stage", "dpo", *changes)
    assert code == 0
    assert line(out, "rows read")[0] == "894"
    read, kept, bad = (int(line(out, name)[0].split()[0].replace(",", "")) for name in ("rows read", "examples kept", "bad"))
    assert read == kept + bad
    assert "52 an assistant turn is empty" in out


def test_a_histogram_counts_every_example():
    for top in (1, 11, 12, 13, 512, 2048):
        values = np.arange(top + 1)
        (lengths,) = measured({"whole": values})
        assert sum(bar.count for bar in lengths.bars) == top + 1
        assert 1 <= len(lengths.bars) <= 12
        assert lengths.quantiles[-1] == top
        first, _, last = lengths.bars[-1].label.replace(",", "").partition("–")
        assert int(first) <= top <= int(last)

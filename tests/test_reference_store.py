"""Reference scores are computed once, by content: shared between runs, added to, safe from kills and damage."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policies import backend, load, shake
from references import Listener, scored
from tiny import ListCorpus, TablePolicy, random_trees, write_model
from zkit_attentions.segments import Segments
from zkit_mistral.backend import Lora, Mistral, Quantize, Scratch
from zkit_quickstart.source import QuickstartData

from zephyr_kit import reference
from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.cache import open_database
from zephyr_kit.protocols import Start
from zephyr_kit.score_store import DATABASE, ScoreStore, count_scores

PRESET = """
name = "pairs"
seed = 3

[model]
use = "mistral"
weights = "{folder}/model"
dtype = "float32"
template = "zephyr"
lora = {{ rank = 4, alpha = 8, dropout = 0.1 }}

[stages.dpo]
objective = {{ use = "dpo", beta = 0.1 }}
data = [{{ use = "jsonl", path = "{folder}/pairs.jsonl" }}]
held_out = [{{ use = "jsonl", path = "{folder}/pairs.jsonl", limit = 5 }}]
max_length = 160
train = {{ steps = 2, examples_per_step = 4, learning_rate = 1e-2, tokens_per_batch = 256 }}
"""
TWO_STAGES = """
[stages.sft]
objective = "sft"
data = [{{ use = "jsonl", path = "{folder}/chat.jsonl" }}]
max_length = 160
train = {{ steps = 1, examples_per_step = 4, learning_rate = 1e-2 }}

[stages.dpo]
model.lora = {{ rank = 2 }}
"""
NUM_PAIRS = 30


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many completions were laid out to be scored, batch by batch."""
    found: list[int] = []

    def lay_out_and_count(trees: Any, **options: Any) -> Any:
        found.append(sum(len(tree.completions) for tree in trees))
        return lay_out(trees, **options)

    monkeypatch.setattr(reference, "lay_out", lay_out_and_count)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("weights") / "model")


def pairs(count: int = NUM_PAIRS) -> list[dict[str, str]]:
    draw = random.Random(0)

    def say(count: int) -> str:
        return " ".join(draw.choices(["sun", "moon", "star", "tree", "river", "stone", "bird", "fish"], k=count))

    return [{"prompt": say(4), "chosen": say(5), "rejected": say(7)} for _ in range(count)]


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Bench:
    """A preset with its data, and a cache of its own; counts what a run scores."""

    def __init__(self, folder: Path, model: Path, counted: list[int]) -> None:
        self.folder, self.counted = folder, counted
        shutil.copytree(model, folder / "model")
        write(folder / "pairs.jsonl", pairs())
        write(folder / "chat.jsonl", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs()])
        (folder / "preset.toml").write_text(PRESET.format(folder=folder))

    def run(self, *changes: str, output: str = "run") -> int:
        """`zkit run`; how many completions it scored for the reference."""
        from zephyr_kit.cli import main

        self.counted.clear()
        sets = [part for change in changes for part in ("--set", change)]
        with pytest.raises(SystemExit) as ended:
            main(["run", str(self.folder / "preset.toml"), "--output", str(self.folder / output), "--accept", "all", *sets])
        assert ended.value.code == 0
        return sum(self.counted)


@pytest.fixture
def bench(tmp_path: Path, model: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("ZKIT_CACHE", str(tmp_path / "cache"))
    return Bench(tmp_path, model, counted)


SAME_REFERENCE = {
    "beta": ["stages.dpo.objective.beta=0.3"],
    "objective": ['stages.dpo.objective={use="ipo"}'],
    "learning rate": ["stages.dpo.train.learning_rate=1e-3"],
    "seed": ["seed=4"],
    "the adapter to be trained": ["model.lora.rank=2"],
    "kernel and batches": ['model.attention="dense"', "stages.dpo.train.tokens_per_batch=512", "stages.dpo.train.share_prompts=false"],
}
OTHER_REFERENCE = {"dtype": ['model.dtype="float64"'], "quantisation": ["model.quantize={bits=4}"]}


def test_what_the_reference_does_not_depend_on_scores_nothing_again(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run() == 2 * NUM_PAIRS, "held-out pairs are among the others, and scored once"
    assert "reference scores of data: 0 completions known, 60 to score" in capsys.readouterr().out
    for name, changes in SAME_REFERENCE.items():
        assert bench.run(*changes) == 0, name
    assert bench.run(output="elsewhere") == 0
    assert "reference scores of data: 60 completions known, 0 to score" in capsys.readouterr().out
    (only,) = (bench.folder / "cache" / "references").iterdir()
    assert count_scores(only) == 2 * NUM_PAIRS


def test_order_and_pairing_score_nothing_again_and_more_pairs_only_themselves(bench: Bench) -> None:
    bench.run()
    rows = pairs()
    write(bench.folder / "pairs.jsonl", random.Random(1).sample(rows, len(rows)))
    assert bench.run() == 0
    write(bench.folder / "pairs.jsonl", [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows])
    assert bench.run() == 0
    write(bench.folder / "pairs.jsonl", pairs(NUM_PAIRS + 3))
    assert bench.run() == 2 * 3
    write(bench.folder / "pairs.jsonl", [{**row, "rejected": "another"} for row in rows])
    assert bench.run() == NUM_PAIRS, "the chosen ones are known"


@pytest.mark.parametrize("changes", OTHER_REFERENCE.values(), ids=OTHER_REFERENCE.keys())
def test_another_reference_scores_all(bench: Bench, changes: list[str]) -> None:
    bench.run()
    assert bench.run(*changes) == 2 * NUM_PAIRS
    assert bench.run(*changes, output="elsewhere") == 0


def test_other_weights_score_all_and_the_stage_before_is_known_by_its_content(bench: Bench) -> None:
    bench.run()
    with (bench.folder / "preset.toml").open("r+") as file:
        head, dpo = file.read().split("[stages.dpo]")
        file.seek(0)
        file.write(head + TWO_STAGES.format(folder=bench.folder).lstrip() + dpo.lstrip("\n"))
    assert bench.run() == 2 * NUM_PAIRS, "the reference is what sft has left"
    assert bench.run("stages.dpo.objective.beta=0.3", output="elsewhere") == 0, "the same adapter, made again in another folder"
    assert bench.run("stages.sft.train.learning_rate=1e-3") == 2 * NUM_PAIRS


# What a fingerprint says


def test_an_adapter_is_known_by_its_content_and_that_of_the_weights_below(model: Path, tmp_path: Path) -> None:
    lora = Lora(rank=4)
    for name in ("here", "there"):
        shutil.copytree(model, tmp_path / name / "base")
        policy = load(tmp_path / name / "base", lora=lora)
        shake(policy)
        policy.save(tmp_path / name / "adapter")

    def told(name: str) -> Any:
        return backend(tmp_path / name / "base", lora=lora).scores_fingerprint(Start(tmp_path / name / "adapter"))

    assert told("here") == told("there")
    write_model(tmp_path / "there" / "base", initializer_range=0.1)
    assert told("here") != told("there")


def test_a_card_or_a_template_beside_the_weights_changes_nothing(model: Path, tmp_path: Path) -> None:
    place = shutil.copytree(model, tmp_path / "model")
    before = backend(place).scores_fingerprint(Start())
    (place / "README.md").write_text("a good one")
    (place / "chat_template.jinja").write_text("{{ messages }}")
    assert backend(place).scores_fingerprint(Start()) == before


def test_random_weights_are_known_by_their_seed_and_shape() -> None:
    def told(seed: int, width: int = 16) -> Any:
        scratch = Scratch((QuickstartData("text", count=5),), width=width)
        return Mistral(scratch=scratch, attention=Segments()).scores_fingerprint(Start(seed=seed))

    assert told(1) == told(1)
    assert told(1) != told(2)
    assert told(1) != told(1, width=32)


def test_a_default_that_is_written_out_is_the_same_quantisation(model: Path) -> None:
    plainly, in_words, other = (
        backend(model, lora=Lora(), quantize=quantize).scores_fingerprint(Start())
        for quantize in (Quantize(), Quantize(kind="nf4", double=True), Quantize(kind="fp4"))
    )
    assert plainly == in_words != other


# The store


def corpus(count: int = 40, seed: int = 0) -> ListCorpus:
    return ListCorpus(random_trees(count, completions=2, seed=seed, vocabulary=16, all_trained=False))


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_scores_are_what_a_live_reference_says(tmp_path: Path, share_prompts: bool, dtype: torch.dtype) -> None:
    pairs, policy = corpus(), TablePolicy(dtype=dtype)
    scored(policy, corpus(20), tmp_path)
    for _ in range(2):
        found = scored(policy, pairs, tmp_path, capacity=60, share_prompts=share_prompts)
        for members in ([0], [7, 3, 39], list(range(40))):
            values = found.of(members)
            assert values.dtype == dtype
            expected = policy.score(lay_out([pairs[i] for i in members], share_prompts=share_prompts))
            torch.testing.assert_close(values, expected.detach(), rtol=1e-6, atol=1e-6)


def test_a_real_model_scores_the_same_live(model: Path, tmp_path: Path) -> None:
    pairs, policy = ListCorpus(random_trees(6, completions=2)), load(model, lora=Lora(rank=4))
    scored(policy, pairs, tmp_path)
    found = scored(policy, pairs, tmp_path)
    policy.keep_reference()
    shake(policy)
    with torch.no_grad(), policy.reference():
        live = policy.score(lay_out(pairs.trees))
    torch.testing.assert_close(found.of(range(6)), live, rtol=1e-5, atol=1e-5)


def test_a_completion_without_targets_has_no_scores(tmp_path: Path, counted: list[int]) -> None:
    ids, none = np.array([3, 4, 5], np.int32), np.zeros(3, np.bool_)
    first_only = np.array([True, False, False])
    without_prompt = Tree(ids[:0], (ids, ids[:2]), (first_only, first_only[:2]))
    trees = [Tree(ids, (ids[:2], ids), (none[:2], ~none)), without_prompt, Tree(ids, (ids,), (none,))]
    found = scored(TablePolicy(), ListCorpus(trees), tmp_path)
    assert [len(found.of([index])) for index in range(3)] == [3, 0, 0]
    assert counted == [1]
    expected = TablePolicy().score(lay_out(trees)).detach()
    assert torch.equal(found.of(range(3)), expected)


def test_completions_are_told_apart_by_prompt_tokens_and_what_is_trained() -> None:
    one, two = np.array([3, 4], np.int32), np.array([3, 4, 5], np.int32)
    flags = np.array([True, True])
    trees = [
        Tree(one, (one,), (flags,)),
        Tree(two, (one,), (flags,)),
        Tree(one, (two[1:],), (flags,)),
        Tree(one, (one,), (np.array([True, False]),)),
        Tree(one[:1], (two[1:],), (flags,)),
    ]
    keys = [key for tree in trees for key in reference.completion_keys(tree)]
    assert len({*keys}) == len(trees)
    assert list(reference.completion_keys(Tree(one, (two[1:], one), (flags, flags)))) == [keys[2], keys[0]]


def test_interrupted_it_goes_on_to_the_same_bits(tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "EXAMPLES_AT_ONCE", 8)
    pairs = corpus()
    straight = scored(TablePolicy(), pairs, tmp_path / "straight", capacity=60)
    whole = list(counted)
    counted.clear()

    class Interrupted(TablePolicy):
        def score(self, batch: Any) -> Any:
            if len(counted) > len(whole) // 2:
                raise KeyboardInterrupt
            return super().score(batch)

    with pytest.raises(KeyboardInterrupt):
        scored(Interrupted(), pairs, tmp_path / "again", capacity=60)
    counted.clear()
    listener = Listener()
    again = scored(TablePolicy(), pairs, tmp_path / "again", capacity=60, narrator=listener)
    (known, missing) = map(int, re.findall(r"\d+", listener.said[0]))
    assert known + missing == 80
    assert 16 <= known < 80
    assert sum(counted) == missing
    assert counted == whole[-len(counted) :], "the same batches"
    assert listener.steps["reference scores of data"][-1] == missing
    assert torch.equal(again.of(range(40)), straight.of(range(40)))


def test_what_is_no_number_is_not_kept(tmp_path: Path, counted: list[int]) -> None:
    pairs, broken = corpus(), TablePolicy()
    broken.module.logits_VV.data[3] = torch.nan
    assert scored(broken, pairs, tmp_path).of(range(40)).isnan().any()
    counted.clear()
    assert torch.equal(scored(TablePolicy(), pairs, tmp_path).of(range(40)), scored(TablePolicy(), pairs, tmp_path / "other").of(range(40)))
    assert 0 < counted[0] < 80


CHILD = """
import os, signal, sys
from pathlib import Path
from zephyr_kit.score_store import ScoreStore
store, first = ScoreStore(Path(sys.argv[1]), {"who": "it"}, "a test"), int(sys.argv[2])
for number in range(first, first + 400):
    store.put({number.to_bytes(16, "big"): ("<f4", number.to_bytes(4, "big"))})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_share_it_and_what_they_put_outlives_them(tmp_path: Path) -> None:
    children = [subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), str(first)]) for first in (0, 300)]
    assert [child.wait(timeout=120) for child in children] == [-signal.SIGKILL] * 2
    with closing(ScoreStore(tmp_path, {"who": "it"}, "a test")) as store:
        found = store.known(number.to_bytes(16, "big") for number in range(701))
    assert found == {number.to_bytes(16, "big"): ("<f4", number.to_bytes(4, "big")) for number in range(700)}


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    """SQLite has undone what was under way by then; what was put before stands."""
    with closing(ScoreStore(tmp_path, {"who": "it"}, "a test")) as store:
        store.put({b"one": ("<f4", b"1234")})
        (pages,) = store._database.execute("PRAGMA page_count").fetchone()
        store._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.put({b"two": ("<f4", bytes(1 << 20))})
        assert store.known([b"one", b"two"]) == {b"one": ("<f4", b"1234")}


@pytest.mark.parametrize("damage", ["UPDATE scores SET logp = zeroblob(length(logp))", "UPDATE scores SET dtype = '<f2'"])
def test_a_damaged_score_is_computed_again(tmp_path: Path, counted: list[int], damage: str) -> None:
    pairs = corpus()
    before = scored(TablePolicy(), pairs, tmp_path).of(range(40))
    counted.clear()
    (file,) = tmp_path.glob(f"*/{DATABASE}")
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(f"{damage} WHERE rowid % 10 = 0")
    assert torch.equal(scored(TablePolicy(), pairs, tmp_path).of(range(40)), before)
    assert sum(counted) == 8
    scored(TablePolicy(), pairs, tmp_path)
    assert sum(counted) == 8, "and kept again"


@pytest.mark.parametrize("place", [0, 4096], ids=["header", "page"])
def test_a_store_that_cannot_be_read_is_begun_anew(tmp_path: Path, counted: list[int], place: int) -> None:
    pairs = corpus()
    before = scored(TablePolicy(), pairs, tmp_path).of(range(40))
    (file,) = tmp_path.glob(f"*/{DATABASE}")
    content = bytearray(file.read_bytes())
    content[place : place + 4096] = b"\xff" * 4096
    file.write_bytes(content)
    counted.clear()
    assert torch.equal(scored(TablePolicy(), pairs, tmp_path).of(range(40)), before)
    assert sum(counted) == 80
    counted.clear()
    assert torch.equal(scored(TablePolicy(), pairs, tmp_path).of(range(40)), before)
    assert not counted


def test_a_file_that_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE t (a)")
        other.execute("BEGIN IMMEDIATE")  # SQLite itself gives up at once here, whatever its time limit
        other.execute("INSERT INTO t VALUES (1)")
        timer = threading.Timer(0.3, lambda: other.execute("COMMIT"))
        timer.start()
        with closing(open_database(file)) as ours:
            assert ours.execute("SELECT count(*) FROM t").fetchone() == (1,)
        timer.join()

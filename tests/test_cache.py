"""`zkit cache` shows what is kept between runs, and clears what it is told to."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import click
import pytest
from references import scored
from tiny import ListCorpus, TablePolicy, random_trees

from zephyr_kit.answers import Answers
from zephyr_kit.cache import CacheError, cache_folder, cache_in_use
from zephyr_kit.cli import build, main
from zephyr_kit.exits import Exit
from zephyr_kit.score_store import SCORER, ScoreStore

DAY = 86_400


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two corpora (one of them old), reference scores, answers, and what a plugin keeps."""
    monkeypatch.setenv("ZKIT_CACHE", str(tmp_path / "cache"))
    for name, age in (("new", 2), ("old", 40)):
        folder = cache_folder("corpora") / name
        folder.mkdir()
        (folder / "tokens.npy").write_bytes(bytes(100_000))
        os.utime(folder / "tokens.npy", (time.time() - age * DAY,) * 2)
    with closing(Answers(cache_folder("answers"))) as answers:
        for number in range(3):
            answers.put(number, "yes")
    scored(TablePolicy(), ListCorpus(random_trees(4, completions=2, vocabulary=16)), cache_folder("references"))
    (cache_folder("graphs") / "one.bin").write_bytes(b"1")
    (cache_folder("digests"))
    return tmp_path / "cache"


def zkit(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["cache", *arguments])
    said = capsys.readouterr()
    assert ended.value.code == code, said
    return said.out + said.err


def table(said: str) -> dict[str, list[str]]:
    lines = [line.split() for line in said.splitlines()]
    return {line[0]: line[1:] for line in lines}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_shows_each_kind_with_its_entries_size_and_last_use(root, capsys):
    said = zkit(capsys)
    assert said.startswith(f"{root}: ")
    rows = table(said)
    assert rows["corpora"] == ["2", "200", "KiB", "used", "2", "days", "ago", "tokenised", "data"]
    assert rows["answers"][0] == "3"
    assert rows["references"][0] == "1"
    assert " ".join(rows["graphs"][3:]) == "used just now kept by a plugin"
    assert "digests" not in rows, "nothing is in it"
    assert zkit(capsys) == said, "a look is no use"


def test_an_empty_cache_is_shown_and_cleared(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ZKIT_CACHE", str(tmp_path / "none"))
    assert zkit(capsys) == f"{tmp_path / 'none'}: 0 bytes\n"
    assert zkit(capsys, "clear", "corpora", "--yes") == "nothing to clear\n"


def test_lists_who_gave_reference_scores(root, capsys):
    about = "stage dpo of zephyr, which starts from runs/zephyr/sft/model"
    with closing(ScoreStore(root / "references", {"backend": "b", "dtype": "bfloat16", "weights": {"w" * 99: "d"}}, about)) as store:
        store.put({b"1": ("<f4", b"")})
    said = zkit(capsys, "references")
    assert "1 completions, " in said
    assert '    dtype = "bfloat16"\n' in said
    assert "    first for stage dpo of zephyr, which starts from runs/zephyr/sft/model\n" in said
    assert max(map(len, said.splitlines())) < 100
    for file in root.glob(f"references/*/{SCORER}"):
        file.write_text("{")
    assert zkit(capsys, "references").count("cannot be read") == 2


def test_clears_what_is_named_and_says_what_was_freed(root, capsys):
    assert zkit(capsys, "clear", "corpora", "graphs", "--yes").splitlines()[-1] == f"freed 204 KiB in {root}"
    assert not names(root / "corpora")
    assert not names(root / "graphs")
    assert names(root / "references")
    assert table(zkit(capsys)).keys() == {f"{root}:", "answers", "references"}


def test_clears_what_was_not_used_for_long(root, capsys):
    assert "freed 100 KiB" in zkit(capsys, "clear", "all", "--older-than", "30d", "--yes")
    assert names(root / "corpora") == {"new"}
    assert zkit(capsys, "clear", "all", "--older-than", "5w", "--yes") == "nothing to clear\n"
    assert "'30' is no age; write 12h, 30d or 8w" in zkit(capsys, "clear", "all", "--older-than", "30", code=2)


def test_what_a_run_takes_from_the_cache_counts_as_used(root, capsys):
    (file,) = root.glob("references/*/scores.sqlite")
    os.utime(file, (time.time() - 40 * DAY,) * 2)
    os.utime(file.with_name(SCORER), (time.time() - 40 * DAY,) * 2)
    assert table(zkit(capsys))["references"][3:6] == ["used", "40", "days"]
    scored(TablePolicy(), ListCorpus(random_trees(4, completions=2, vocabulary=16)), root / "references")
    assert table(zkit(capsys))["references"][3:6] == ["used", "just", "now"]


def test_answers_are_cleared_only_when_named_and_it_says_that_they_cost(root, capsys):
    said = zkit(capsys, "clear", "all", "--yes")
    assert "judgements" not in said
    assert names(root) >= {"answers"}
    assert not names(root / "corpora")
    said = zkit(capsys, "clear", "answers", "--yes")
    assert "replies and judgements, which may have been paid for: asking again costs what they cost" in said
    assert "answers" not in names(root)


@pytest.mark.parametrize(("reply", "left"), [("n", 2), ("y", 0)])
def test_asks_first_at_a_terminal(root, monkeypatch, reply, left):
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda text: asked.append(text) or reply)
    arguments = ["cache", "clear", "corpora", "answers"]
    if left:
        with pytest.raises(click.Abort):
            build().main(arguments, standalone_mode=False)
    else:
        build().main(arguments, standalone_mode=False)
    assert len(names(root / "corpora")) == left
    assert (root / "answers").exists() == bool(left)


def test_without_a_terminal_it_wants_to_be_told(root, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert "there is no terminal to ask at; add --yes" in zkit(capsys, "clear", "corpora", code=1)
    assert len(names(root / "corpora")) == 2


def test_an_unknown_kind_is_refused_with_the_nearest(root, capsys):
    assert "Error: nothing is kept under 'corpra'; did you mean `corpora`?" in zkit(capsys, "clear", "corpra", code=2)
    assert "Missing argument 'KIND...'" in zkit(capsys, "clear", code=2)
    assert "No such command 'claer'" in zkit(capsys, "claer", code=2)


def test_nothing_is_cleared_under_a_run(root, capsys):
    with cache_in_use():
        assert "another zkit works with what is kept; wait for it to end" in zkit(capsys, "clear", "all", "--yes", code=1)
        with cache_in_use():
            pass
    assert len(names(root / "corpora")) == 2


def test_a_damaged_file_of_answers_is_shown_and_cleared(root, capsys):
    (root / "answers" / "answers.sqlite").write_bytes(b"no database" * 1000)
    assert table(zkit(capsys))["answers"][0] == "1"
    zkit(capsys, "clear", "answers", "--yes")
    assert not (root / "answers").exists()


def test_one_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("ZKIT_CACHE", str(root))
        with pytest.raises(CacheError, match=f"{root}/corpora: .* choose another folder with ZKIT_CACHE") as told:
            cache_folder("corpora")
        assert told.value.exit is Exit.DISK
    monkeypatch.setenv("ZKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(CacheError, match="it can only be read"):
        cache_folder("corpora")

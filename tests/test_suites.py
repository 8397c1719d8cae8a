"""What suites make of log-probabilities and judgements, and how sure they say they are."""

from __future__ import annotations

import io
import math
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm import tqdm
from zkit_evaluation import zkit_suites
from zkit_evaluation.alpaca import AlpacaEval
from zkit_evaluation.harness import LmEval
from zkit_evaluation.intervals import interval_of_mean, interval_of_ratio
from zkit_evaluation.located import located
from zkit_evaluation.miniature import StandInJudge, write_questions
from zkit_evaluation.mt_bench import Examiner, MtBench
from zkit_evaluation.packages import bars_in_terminals_alone
from zkit_evaluation.perplexity import Perplexity
from zkit_evaluation.preference import BINS, Pair, Preference, calibration_error, length_biases
from zkit_evaluation.win_rate import Match, WinRate, per_prompt
from zkit_feedback.own import OwnCompleter
from zkit_quickstart.source import QuickstartData

from zephyr_kit import ZkitError
from zephyr_kit.cli.suites import read_suites, split
from zephyr_kit.config import PresetError
from zephyr_kit.evaluating import evaluate, folder_names
from zephyr_kit.evaluations import read_evaluation
from zephyr_kit.plugins import Plugins
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import Evaluation, Failure, Judgement
from zephyr_kit.testing import SuiteLaws


def test_an_interval_holds_the_mean_as_often_as_it_says():
    draw = random.Random(0)
    held = 0
    for number in range(60):
        low, high = interval_of_mean([draw.gauss(1.0, 2.0) for _ in range(60)], seed=number)
        held += low <= 1.0 <= high
    assert 0.88 <= held / 60 <= 0.99
    assert interval_of_mean([3.0]) is None
    assert interval_of_mean([]) is None
    assert interval_of_mean([0.5] * 9) == (0.5, 0.5)


def test_an_interval_of_a_ratio_draws_both_sides_together_and_is_repeated():
    assert interval_of_ratio([2.0, 4.0, 6.0], [1, 2, 3]) == pytest.approx((2.0, 2.0))
    draw = random.Random(1)
    values = [draw.random() for _ in range(50)]
    assert interval_of_mean(values) == interval_of_mean(values)
    assert interval_of_mean(values) != interval_of_mean(values, seed=1)


def test_calibration_is_right_where_confidence_is_the_share_that_is_right():
    margin = math.log(3)  # sigmoid: 0.75
    assert calibration_error([margin, margin, margin, -margin]) == pytest.approx(0.0)
    assert calibration_error([margin] * 4) == pytest.approx(0.25)
    assert calibration_error([-margin] * 4) == pytest.approx(0.75)
    assert calibration_error([0.0, 0.0]) == pytest.approx(0.0)
    assert calibration_error([1e6, -1e6]) == pytest.approx(0.5)
    sure, unsure = math.log(19), math.log(11 / 9)  # 0.95 and 0.55: bins apart
    assert calibration_error([sure] * 2 + [-unsure] * 2) == pytest.approx((2 * 0.05 + 2 * 0.55) / 4)
    assert BINS == 15


def test_length_bias_is_nothing_for_who_prefers_what_was_chosen():
    pairs = [Pair((0, 0), (0, 0), lengths) for lengths in [(5, 3), (2, 9), (4, 4)]]
    assert length_biases(pairs, [1.0, 1.0, 1.0]) == [0.0, 0.0]
    assert length_biases(pairs, [1.0, -1.0, 1.0]) == [0.0, 1.0]
    assert length_biases(pairs, [-1.0, 1.0, 1.0]) == [-1.0, 0.0]


def test_a_margin_is_told_from_the_reference():
    assert Pair((-10.0, -12.0), (-11.0, -10.0), (1, 1)).margin(0.5) == pytest.approx(0.5 * (1.0 - -2.0))
    assert Pair((-10.0, -12.0), None, (1, 1)).margin(0.5) == pytest.approx(1.0)


def test_a_reference_that_reads_text_otherwise_is_refused():
    class Read:
        def __init__(self, told: str) -> None:
            self.tokenizer = SimpleNamespace(fingerprint=lambda: told)

    suite = Preference(data=(object(),), reference="b")
    with pytest.raises(ZkitError, match="reference = 'b': reads text by another tokenizer or chat template than a,"):
        suite.evaluate({"a": Read("one"), "b": Read("other")}, None, Path())
    with pytest.raises(ZkitError, match="there is no such model"):
        suite.evaluate({"a": Read("one")}, None, Path())


def judged(first: tuple[float, float], second: tuple[float, float]) -> tuple[Judgement, Judgement]:
    return Judgement(first), Judgement(second)


def test_a_win_is_one_in_both_orders():
    always, never = judged((2, 1), (1, 2)), judged((1, 2), (2, 1))
    first_place, tie = judged((2, 1), (2, 1)), judged((1, 1), (1, 2))
    assert [Match(0, ("a", "b"), each).value() for each in (always, never, first_place, tie, None)] == [1, 0, 0.5, 0.5, 0.5]
    assert Match(0, ("a", "b"), (Judgement((1, 2)), Failure("broke"))).value() is None
    matches = [Match(0, ("a", "b"), always), Match(0, ("a", "c"), never), Match(1, ("b", "a"), always), Match(1, ("a", "c"), None)]
    assert per_prompt(matches, "a") == [0.5, 0.25]
    assert per_prompt(matches, "a", "b") == [1.0, 0.0]
    assert per_prompt(matches, "c") == [1.0, 0.5]


def test_suites_are_offered():
    assert sorted(zkit_suites()) == ["alpaca-eval", "lm-eval", "mt-bench", "perplexity", "preference", "win-rate"]


def test_the_command_line_names_suites_with_their_keys(tmp_path: Path):
    offers = Plugins().offers
    given = 'perplexity:max_length=64,data=[{use="jsonl",path="a,b.jsonl"},{use="jsonl",path="c"}],bad_rows=0.5'
    ((name, suite, settings),) = read_suites([given], offers)
    assert (name, suite.max_length, suite.bad_rows, len(suite.data)) == ("perplexity", 64, 0.5, 2)
    assert settings["data[0].path"] == "a,b.jsonl"
    (tmp_path / "two.toml").write_text('suites = [{ use = "lm-eval", tasks = ["arc"] }, { use = "lm-eval", limit = 3 }]')
    assert [suite.limit for _, suite, _ in read_suites([str(tmp_path / "two.toml")], offers)] == [None, 3]
    assert split("a=[1,2],b=\"x,y\",c='{'") == ["a=[1,2]", 'b="x,y"', "c='{'"]
    for wrong, told in [
        ("perplexty", "--suite perplexty: .*did you mean `perplexity`"),
        ("lm-eval:limits=3", "--suite lm-eval: .*did you mean `limit`"),
        ("lm-eval:limit", "--suite limit: write it as"),
        ('mt-bench:judge={use="openai"}', r"--suite mt-bench: \[suite.judge\] needs `model`"),
    ]:
        with pytest.raises(PresetError, match=told):
            read_suites([wrong], offers)


def test_a_secret_in_a_suite_is_refused_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-0123456789abcdef0123456789")
    with pytest.raises(PresetError, match="holds the value of the environment variable JUDGE_API_KEY") as told:
        read_suites(['mt-bench:judge={use="openai",model="m",extra={token="sk-0123456789abcdef0123456789"}}'], Plugins().offers)
    assert "sk-0123" not in str(told.value)


def test_folders_of_equal_suites_are_numbered_and_an_evaluation_survives_json():
    assert folder_names(["a", "b", "a"]) == ["a", "b", "a-2"]
    facts = {"title": "t", "columns": {"x": "y"}, "rows": {"m": {"x": 1.0}}, "samples": [], "intervals": {"m": {"x": [0.5, 1.5]}}}
    assert read_evaluation(facts).intervals == {"m": {"x": (0.5, 1.5)}}
    assert read_evaluation({key: facts[key] for key in ("title", "columns", "rows")}).intervals == {}


def test_what_is_not_finite_is_not_told(tmp_path: Path):
    found = Evaluation("t", {"x": "y"}, {"m": {"x": math.nan, "y": 1.0}}, intervals={"m": {"x": (0.0, math.inf), "y": (0.5, 1.5)}})
    models = {"m": SimpleNamespace(tokenizer=None)}
    (told,) = evaluate(SimpleNamespace(evaluate=lambda *_: found), models, tmp_path)
    assert (told.rows, told.intervals) == ({"m": {"x": None, "y": 1.0}}, {"m": {"y": (0.5, 1.5)}})


def test_a_file_of_the_hub_is_taken_from_where_it_was_fetched_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    commit = "1" * 40
    place = tmp_path / "spaces--lmsys--mt-bench"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    file = place / "snapshots" / commit / "data" / "question.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("{}\n")
    fetch = huggingface_hub.hf_hub_download
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **keys: fetch(*args, **keys, cache_dir=tmp_path))
    assert located("hf://spaces/lmsys/mt-bench/data/question.jsonl") == file
    with pytest.raises(ZkitError, match=r"other\.jsonl: cannot be had: .*; ask there"):
        located("hf://spaces/lmsys/mt-bench/data/other.jsonl", "ask there")
    with pytest.raises(ZkitError, match="should be hf://"):
        located("hf://spaces/lmsys")


@pytest.mark.parametrize(("package", "suite"), [("alpaca_eval", AlpacaEval(judge=StandInJudge())), ("lm_eval", LmEval())])
def test_a_package_that_lacks_what_it_imports_is_told_before_anybody_is_asked(package, suite, tmp_path, monkeypatch):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("import pkg_resources_of_old")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    told = f"{package} cannot be imported (ModuleNotFoundError: No module named 'pkg_resources_of_old'): pip install 'zephyr-kit[eval]'"
    assert told in suite.problems()[0]
    with pytest.raises(ZkitError, match=re.escape(told)):
        suite.evaluate({}, None, tmp_path)


def test_a_bar_is_for_terminals():
    def drawn() -> str:
        out = io.StringIO()
        list(tqdm(range(3), disable=False, file=out))
        return out.getvalue()

    with bars_in_terminals_alone():
        assert drawn() == ""
    assert "3/3" in drawn()


QUICKSTART = {part: (Portion(QuickstartData(part)),) for part in ("chat", "preference", "prompt")}


class TestPerplexity(SuiteLaws):
    suite = Perplexity(data=QUICKSTART["chat"])


class TestPreference(SuiteLaws):
    suite = Preference(data=QUICKSTART["preference"])


class TestWinRate(SuiteLaws):
    suite = WinRate(prompts=QUICKSTART["prompt"], judge=StandInJudge())


class TestMtBench(SuiteLaws):
    @pytest.fixture(autouse=True)
    def _questions(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        questions = write_questions(tmp_path_factory.mktemp("questions"))
        self.suite = MtBench(questions=str(questions), judge=Examiner(completer=OwnCompleter()), grading=("single", "pairs"))

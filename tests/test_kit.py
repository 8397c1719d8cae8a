"""The kit itself: every hook has laws, every law can fail, and what breaks one in the open is told."""

from __future__ import annotations

import gc
import html
import re
import shutil
import types
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import torch
from hypothesis import settings
from made_runs import put, write_run
from planted import (
    CUT,
    OPENLY,
    Averaging,
    Bent,
    Crossing,
    Detached,
    Modest,
    OpenlyAveraging,
    Raising,
    Summing,
    Undefined,
    WantsLogits,
    broken,
    found,
)
from zkit_launchers.elastic import Elastic
from zkit_launchers.slurm import Slurm
from zkit_quickstart.judge import QuickstartJudge
from zkit_quickstart.suite import QuickstartSuite

from zephyr_kit import hookimpl
from zephyr_kit.card import COUNTS, write_card
from zephyr_kit.cli.plugins import _offered
from zephyr_kit.cli.tell import Teller
from zephyr_kit.facts import read_run
from zephyr_kit.plugins import Plugins, hook_names
from zephyr_kit.protocols import Evaluation
from zephyr_kit.report import FORMATS
from zephyr_kit.runs import BROKEN_LAWS
from zephyr_kit.testing import (
    KITS,
    CommandsLaws,
    LauncherLaws,
    ObjectiveLaws,
    ObserverLaws,
    PresetsLaws,
    SuiteLaws,
)
from zephyr_kit.testing.check import Subject
from zephyr_kit.testing.laws import laws_of
from zephyr_kit.testing.page import page

ROOT = Path(__file__).parents[1]


def test_every_hook_has_laws_and_every_law_says_what_breaks_without_it():
    assert sorted(KITS) == sorted(hook_names())
    for kit in KITS.values():
        assert kit.title
        for law in laws_of(kit):
            assert law.says.endswith("."), law
            assert law.without.endswith("."), law


def test_the_page_is_made_of_the_laws():
    assert (ROOT / "docs" / "laws.md").read_text("utf-8") == page(), "python -m zephyr_kit.testing > docs/laws.md"


# What is built in


class TestQuickstartSuite(SuiteLaws):
    suite = QuickstartSuite(prompts=3, pairs=3, judge=QuickstartJudge())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that torch's agent leaves open
class TestElastic(LauncherLaws):
    launcher = Elastic()

    @pytest.fixture(autouse=True)
    def _files_are_closed_here(self):
        yield
        gc.collect()


class TestSlurm(LauncherLaws):
    launcher = Slurm(submit=False)
    waits = False


class TestPresets(PresetsLaws):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory):
        self.folder = tmp_path_factory.mktemp("presets")
        shutil.copy(ROOT / "presets" / "zephyr-qlora.toml", self.folder)


class TestTeller(ObserverLaws):
    observer = Teller()


class TestCommands(CommandsLaws):
    plugin = types.SimpleNamespace(zkit_commands=hookimpl(lambda cli: cli.add_command(click.Command("hello", help="Say hello."))))


# Objectives that break laws


class TestOpenlyAveraging(ObjectiveLaws):
    """Under pytest, what it breaks in the open is an expected failure."""

    objective = OpenlyAveraging()


def test_an_average_breaks_the_laws_and_is_told_why():
    findings = found(ObjectiveLaws, Averaging())
    assert broken(findings) == {"adds_up_over_examples", "a_step_is_the_same_however_it_is_cut"}
    told = findings["adds_up_over_examples"]
    assert "Return a sum over examples" in told.remark
    assert told.figures["largest difference"] > 0.1
    assert not broken(found(ObjectiveLaws, Summing()))


def test_what_is_broken_in_the_open_is_no_fault():
    findings = found(ObjectiveLaws, OpenlyAveraging())
    assert not broken(findings)
    assert findings["a_step_is_the_same_however_it_is_cut"].outcome == "does not apply"
    assert (findings["adds_up_over_examples"].outcome, findings["adds_up_over_examples"].remark) == ("broken openly", CUT)


def test_laws_that_are_kept_or_unknown_cannot_be_given_up():
    findings = found(ObjectiveLaws, Modest())
    assert broken(findings) == {"adds_up_over_examples", "breaks_only_laws_that_there_are"}
    assert "`breaks` names 'adds_up_over_examples', which is kept" in findings["adds_up_over_examples"].remark
    told = findings["breaks_only_laws_that_there_are"].remark
    assert told == "`breaks` names 'adds_up', which is no law of these; did you mean `adds_up_over_examples`?"
    under_pytest = type("Tried", (ObjectiveLaws,), {"objective": Modest()})()
    with pytest.raises(AssertionError, match="which is kept"):
        under_pytest.test_adds_up_over_examples()


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (Raising(), r"RuntimeError: boom \(.*planted\.py, line \d+: raise RuntimeError\(.boom.\)\)\n"),
        (WantsLogits(), r"AttributeError: scores have no `logits`: .* \(.*planted\.py, line \d+: logits: Tensor = policy\.logits\)\n"),
        (Undefined(), r"the loss of ordinary log-probabilities is nan\n"),
        (Detached(), r"the loss has lost its graph\n"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_loss_that_is_none_is_told_once_on_the_smallest_examples(objective, told):
    findings = found(ObjectiveLaws, objective)
    assert broken(findings) == {"is_a_scalar_sum"}
    assert re.match(told, findings["is_a_scalar_sum"].remark)
    smallest = "Scored(policy=[[-1.0], [-1.0]], reference=[[-1.0], [-1.0]], ratings=[nan, nan])"
    assert findings["is_a_scalar_sum"].remark.endswith(f"the smallest that was found to break it: {smallest}")
    later = {name: finding for name, finding in findings.items() if finding.outcome == "not tried"}
    assert len(later) > 5
    assert {finding.remark for finding in later.values()} == {"not before it is a scalar sum"}


def test_a_law_tells_the_same_whatever_hypothesis_is_set_to():
    told = found(ObjectiveLaws, Detached())["is_a_scalar_sum"].remark
    before = settings.get_current_profile_name()
    settings.register_profile("as on a server", print_blob=True, max_examples=1, derandomize=False)
    settings.load_profile("as on a server")
    try:
        assert found(ObjectiveLaws, Detached())["is_a_scalar_sum"].remark == told
    finally:
        settings.load_profile(before)


def test_pairs_are_compared_beyond_a_bend_of_the_loss_too():
    assert "adds_up_over_examples" in broken(found(ObjectiveLaws, Bent()))
    told = found(ObjectiveLaws, Crossing())["a_step_is_the_same_however_it_is_cut"].remark
    assert told.startswith("another loss or gradient with batches of half a step")


def test_what_is_broken_in_the_open_is_shown(tmp_path):
    plugins = Plugins(discover=False)
    plugins.add(types.SimpleNamespace(zkit_objectives=hookimpl(lambda: {"averaging": OpenlyAveraging, "summing": Summing})), "planted")
    told = [f"    breaks `{law}`: {CUT}" for law in OPENLY]
    assert _offered(plugins)["planted"] == ["objective averaging", *told, "objective summing"]
    settings = {"model.weights": "w", "objective.use": "averaging"}
    ledger = dict.fromkeys(COUNTS, 0)
    write_card(tmp_path, run="r", stage="s", before=(), seed=0, settings=settings, ledger=ledger, last={}, breaks=OPENLY)
    assert f"- `adds_up_over_examples`: {CUT}\n" in (tmp_path / "README.md").read_text("utf-8")


def test_what_is_broken_in_the_open_stands_in_the_report(tmp_path):
    folder = write_run(tmp_path / "made")
    assert not [text for text in (form([read_run(folder)]) for form in FORMATS.values()) if "breaks the law" in text]
    put(folder / "dpo" / BROKEN_LAWS, OPENLY)
    for form in FORMATS.values():
        told = html.unescape(form([read_run(folder)]))
        assert f"its objective says that it breaks the law `adds_up_over_examples` (docs/laws.md), on which results rest: {CUT}" in told


# Plugins of other kinds that break laws


@dataclass(frozen=True)
class Hoarder:
    """An evaluation that opens all models before it measures the first, and forgets one."""

    def problems(self):
        return []

    def evaluate(self, models, tokenizer, folder):
        from contextlib import ExitStack

        with ExitStack() as stack:
            for opened in models.values():
                stack.enter_context(opened())
        return Evaluation("Hoard", {"worth": "what it is worth"}, {name: {"worth": float("nan")} for name in list(models)[1:]})

    def miniature(self, folder):
        return self


def test_a_suite_that_hoards_models_is_found_out():
    assert broken(found(SuiteLaws, Hoarder())) == {"measures_every_model", "measures_are_numbers", "holds_one_model_at_a_time"}


def test_an_observer_that_steers_is_found_out():
    def steer(run, report):
        report.metrics["reward/margin"] = 1.0
        torch.rand(1)

    def fail(run, error):
        if error is not None:
            raise RuntimeError("lost")

    observer = types.SimpleNamespace(zkit_step_ended=hookimpl(steer), zkit_run_ended=hookimpl(fail))
    assert broken(found(ObserverLaws, observer)) == {"never_steers", "hears_a_run_that_fails", "hears_a_run_that_goes_on"}


def test_commands_and_presets_that_say_nothing_are_found_out(tmp_path):
    mute = types.SimpleNamespace(zkit_commands=hookimpl(lambda cli: cli.add_command(click.Command("Do It"))))
    assert broken(found(CommandsLaws, mute)) == {"every_command_says_what_it_does", "names_can_be_typed"}
    (tmp_path / "mute.toml").write_text((ROOT / "presets" / "quickstart.toml").read_text().replace("description", "# description"))
    (tmp_path / "notes.md").write_text("notes")
    assert broken(found(PresetsLaws, tmp_path)) == {"every_preset_says_what_it_is", "holds_nothing_but_presets"}


def test_a_launcher_that_hides_failures_is_found_out():
    @dataclass(frozen=True)
    class Deaf:
        def problems(self, job):
            return []

        def launch(self, job, say):
            return 0

    assert broken(found(LauncherLaws, Deaf())) == {"tells_when_a_job_fails"}


def test_laws_that_need_pytest_or_more_than_there_is_are_not_tried():
    class Fixed(ObjectiveLaws):
        def test_of_its_own(self, weights):
            raise AssertionError

    findings = found(Fixed, Summing())
    assert findings["of_its_own"].outcome == "not tried"
    assert "`weights`" in findings["of_its_own"].remark
    lost = {finding.law.name: finding.outcome for finding in Subject("it", ObjectiveLaws).findings()}
    assert set(lost.values()) == {"not tried"}

"""Finding plugins: what disagrees is refused by name, what is broken takes nobody else down."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from distributions import HINGE, write_distribution

from zephyr_kit import hookimpl
from zephyr_kit.config import PresetError
from zephyr_kit.plugins import OFFERS, PluginError, Plugins
from zephyr_kit.preset import load
from zephyr_kit.protocols import Attention, Backend, DataSource, Judge, Objective, OptimizerFactory, Suite

QUICKSTART = Path(__file__).parents[1] / "presets" / "quickstart.toml"

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path, monkeypatch) -> Install:
    """Put a distribution on the path, for this test only."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def put(name: str, entries: dict[str, str], **more: str) -> None:
        for module in entries.values():
            sys.modules.pop(module, None)
        write_distribution(tmp_path, name, entries, **more)

    yield put
    for module in set(sys.modules) - before:
        if getattr(sys.modules[module], "__file__", None) and str(tmp_path) in str(sys.modules[module].__file__):
            del sys.modules[module]


def plugin(**functions: Callable[..., object]) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{name: hookimpl(function) for name, function in functions.items()})


@dataclass(frozen=True)
class Nothing:
    pass


def test_a_plugin_is_found_by_its_entry_point(install):
    install("toy-hinge", {"toy": "zkit_toy_1"}, code=HINGE)
    plugins = Plugins()
    assert str(plugins.origins["toy"]) == "toy (toy-hinge 1.2)"
    assert plugins.offered_by(Objective)["toy_hinge"][1] == "toy"
    assert {"sft", "dpo", "ipo", "toy_hinge"} <= set(plugins.offered(Objective))
    assert plugins.hooks_of("toy") == ["zkit_objectives"]
    assert plugins.broken("toy") == []


def test_two_plugins_may_not_offer_one_name(install):
    install("toy-hinge", {"toy": "zkit_toy_2"}, code=HINGE)
    install("other-hinge", {"other": "other_hinge"}, code=HINGE)
    both = r"objective .toy_hinge. is offered by both .*; uninstall one, or set ZKIT_BLOCK_PLUGINS="
    with pytest.raises(PluginError, match=both) as caught:
        Plugins().offered(Objective)
    assert "toy (toy-hinge 1.2)" in str(caught.value)
    assert "other (other-hinge 1.2)" in str(caught.value)


@pytest.mark.parametrize("module", ["zkit_toy_3", "impostor"])
def test_two_distributions_may_not_claim_one_plugin_name(install, module):
    """pluggy would drop the second in silence."""
    install("toy-hinge", {"toy": "zkit_toy_3"}, code=HINGE)
    install("impostor", {"toy": module}, code=HINGE)
    with pytest.raises(PluginError, match="two plugins are named 'toy': ") as caught:
        Plugins()
    assert "toy (toy-hinge 1.2)" in str(caught.value)
    assert "toy (impostor 1.2)" in str(caught.value)


def test_without_third_parties_nothing_of_theirs_is_imported(install, monkeypatch):
    install("toy-hinge", {"toy": "zkit_toy_9"}, code="raise SystemExit('imported')\n")
    install("impostor", {"sft": "zkit_impostor"}, code="raise SystemExit('imported')\n")
    monkeypatch.setenv("ZKIT_NO_THIRD_PARTY", "1")
    plugins = Plugins()
    assert {"toy"} == plugins.blocked
    assert not {"zkit_toy_9", "zkit_impostor"} & set(sys.modules)
    assert {"sft", "dpo", "ipo"} <= set(plugins.offered(Objective))
    assert plugins.third_parties() == []
    assert "plugin toy (toy-hinge 1.2) is blocked by ZKIT_NO_THIRD_PARTY" in plugins.remark("zkit_objectives")


def test_whoever_calls_itself_zephyr_kit_is_none_of_ours_by_that(install, monkeypatch):
    """Python then finds ours no longer; nothing of the other's is imported."""
    install("zephyr-kit", {"fake": "zkit_fake", "sft": "zkit_fake"}, code="raise SystemExit('imported')\n", version="9.9")
    monkeypatch.setenv("ZKIT_NO_THIRD_PARTY", "1")
    assert {"fake", "sft"} <= Plugins().blocked
    assert "zkit_fake" not in sys.modules


def test_third_parties_are_known_by_name_distribution_and_version(install):
    assert Plugins().third_parties() == []
    install("toy-hinge", {"toy": "zkit_toy_8"}, code=HINGE)
    assert [str(origin) for origin in Plugins().third_parties()] == ["toy (toy-hinge 1.2)"]


def test_a_misspelt_hook_is_refused(install):
    install("toy-hinge", {"toy": "zkit_toy_4"}, code=HINGE.replace("zkit_objectives", "zkit_objective"))
    message = "plugin toy (toy-hinge 1.2) implements `zkit_objective`, which is no hook; did you mean `zkit_objectives`?"
    with pytest.raises(PluginError, match=re.escape(f"{message} (to go without it: ZKIT_BLOCK_PLUGINS=toy)")):
        Plugins()


def test_what_pluggy_passes_over_is_refused():
    def offer():
        return {"one": Nothing}

    def only_by_keyword(*, run):
        pass

    with pytest.raises(PluginError, match="defines `zkit_objectives` without the mark @hookimpl"):
        Plugins(types.SimpleNamespace(zkit_objectives=offer), discover=False)
    with pytest.raises(PluginError, match="takes `run` of `zkit_run_started` as a keyword only"):
        Plugins(plugin(zkit_run_started=only_by_keyword), discover=False)
    with pytest.raises(PluginError, match=r"(?s)cannot be registered: .*'reprt'"):
        Plugins(plugin(zkit_step_ended=lambda run, reprt: None), discover=False)
    twice = plugin(zkit_objectives=offer)
    with pytest.raises(PluginError, match="cannot be registered: "):
        Plugins(twice, twice, discover=False)


def test_a_plugin_that_cannot_be_imported_is_broken_alone(install):
    install("zkit-steam", {"steam": "zkit_steam"}, code="import not_there_at_all\n")
    install("zkit-exit", {"exit": "zkit_exit"}, code="raise SystemExit('no licence')\n")
    plugins = Plugins()
    assert plugins.broken("steam") == ["import failed: ModuleNotFoundError: No module named 'not_there_at_all'"]
    assert plugins.broken("exit") == ["import failed: SystemExit: no licence"]
    assert "dpo" in plugins.offered(Objective)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (lambda: 1 / 0, "zkit_objectives raised ZeroDivisionError: division by zero"),
        (lambda: ["hinge"], "zkit_objectives raised TypeError: its answer is ['hinge'], not a mapping"),
        (lambda: {"hinge": object}, "zkit_objectives raised TypeError: its offer 'hinge' is <class 'object'>, not a frozen dataclass"),
        (lambda: {"hinge": dataclass(type("Loose", (), {}))}, "not a frozen dataclass"),
        (
            lambda: {"hinge": dataclass(frozen=True)(type("Early", (), {"__annotations__": {"a": "Tensor"}}))},
            "name 'Tensor' is not defined in an annotation of Early; import it outside `if TYPE_CHECKING`",
        ),
    ],
)
def test_a_plugin_that_answers_wrongly_is_broken_alone(answer, cause):
    plugins = Plugins(discover=False)
    plugins.add(plugin(zkit_objectives=answer, zkit_data_sources=lambda: {"files": Nothing}), "wrong")
    plugins.add(plugin(zkit_objectives=lambda: {"fine": Nothing}), "right")
    assert plugins.offered(Objective) == {"fine": Nothing}
    assert plugins.offered(DataSource) == {"files": Nothing}
    assert cause in "".join(plugins.broken("wrong"))
    assert plugins.broken("right") == []
    assert f"plugin wrong is broken: {plugins.broken('wrong')[0]}" in plugins.offers[Objective].remark
    assert plugins.offers[DataSource].remark == ""


def test_a_preset_that_needs_a_broken_plugin_is_told_of_it(install):
    install("toy-hinge", {"toy": "zkit_toy_5"}, code="import not_there_at_all\n")
    plugins = Plugins()
    assert load(QUICKSTART, plugins.offers).name == "quickstart"
    with pytest.raises(PresetError) as caught:
        load(QUICKSTART, plugins.offers, changes=["stages.dpo.objective=toy_hinge"])
    first, second = str(caught.value).splitlines()
    assert '[stages.dpo.objective] `use` = "toy_hinge": no plugin offers such an objective; ' in first
    assert second == "  plugin toy (toy-hinge 1.2) is broken: import failed: ModuleNotFoundError: No module named 'not_there_at_all'"


def test_plugins_can_be_blocked(install, monkeypatch):
    install("toy-hinge", {"toy": "zkit_toy_6"}, code="import not_there_at_all\n")
    install("impostor", {"toy": "zkit_toy_6"})
    monkeypatch.setenv("ZKIT_BLOCK_PLUGINS", "toy, preference")
    plugins = Plugins()
    assert plugins.blocked == {"toy", "preference"}
    assert plugins.broken("toy") == []
    assert "sft" in plugins.offered(Objective)
    assert "dpo" not in plugins.offered(Objective)
    with pytest.raises(PresetError, match=r"\n  plugin preference \(zephyr-kit .*\) is blocked by ZKIT_BLOCK_PLUGINS"):
        load(QUICKSTART, plugins.offers)
    monkeypatch.setenv("ZKIT_BLOCK_PLUGINS", "prefrence")
    with pytest.raises(PluginError, match=r"ZKIT_BLOCK_PLUGINS names 'prefrence', which is no plugin; did you mean `preference`\?"):
        Plugins()


@pytest.mark.parametrize(
    ("hook", "kind"),
    [
        ("zkit_attentions", Attention),
        ("zkit_backends", Backend),
        ("zkit_data_sources", DataSource),
        ("zkit_judges", Judge),
        ("zkit_objectives", Objective),
        ("zkit_optimizers", OptimizerFactory),
        ("zkit_suites", Suite),
    ],
)
def test_a_hook_offers_its_kind_and_no_other(hook, kind):
    plugins = Plugins(plugin(**{hook: lambda: {"one": Nothing}}), discover=False)
    assert {other: plugins.offered(other) for other in OFFERS if plugins.offered(other)} == {kind: {"one": Nothing}}


def test_offers_of_every_kind_are_asked_for_only_when_needed():
    asked = []

    def offer() -> dict[str, type]:
        asked.append(1)
        return {"one": Nothing}

    plugins = Plugins(plugin(**{hook: offer for _, hook in OFFERS.values()}), discover=False)
    offers = plugins.offers
    assert (len(offers), list(offers), asked) == (len(OFFERS), list(OFFERS), [])
    for kind in (*OFFERS, *OFFERS):
        assert offers[kind].by_name == {"one": Nothing}
    assert len(asked) == len(OFFERS)


def test_folders_of_presets(tmp_path):
    plugins = Plugins(plugin(zkit_presets=lambda: tmp_path), discover=False)
    plugins.add(plugin(zkit_presets=lambda: tmp_path / "nowhere"), "lost")
    plugins.add(plugin(zkit_presets=lambda: 3), "odd")
    assert plugins.preset_folders() == [tmp_path]
    assert plugins.broken("lost") == [f"zkit_presets raised NotADirectoryError: there is no folder {tmp_path / 'nowhere'}"]
    assert "TypeError: its answer is 3, not a path" in plugins.broken("odd")[0]


def test_commands():
    def hello(cli):
        cli.add_command(click.Command("hello"))

    def fail(cli):
        raise RuntimeError("no")

    plugins = Plugins(discover=False)
    plugins.add(plugin(zkit_commands=hello), "one")
    plugins.add(plugin(zkit_commands=lambda: None), "lazy")
    plugins.add(plugin(zkit_commands=fail), "failing")
    group = click.Group(commands=[click.Command("run")])
    plugins.add_commands(group)
    assert sorted(group.commands) == ["hello", "run"]
    assert plugins.broken("failing") == ["zkit_commands raised RuntimeError: no"]
    plugins.add(plugin(zkit_commands=lambda cli: cli.add_command(click.Command("hello"))), "two")
    with pytest.raises(PluginError, match="command `hello` is offered by both one and two"):
        plugins.add_commands(click.Group())
    greedy = Plugins(plugin(zkit_commands=lambda cli: cli.add_command(click.Command("run"))), discover=False)
    with pytest.raises(PluginError, match="command `run` is offered by both zephyr-kit itself and"):
        greedy.add_commands(group)

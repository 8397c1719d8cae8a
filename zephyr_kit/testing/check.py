"""Laws tried without pytest, one by one, and what came of each."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zephyr_kit import ZkitError, raised
from zephyr_kit.changes import apply_changes
from zephyr_kit.config import USE, Builder, PresetError, suggest
from zephyr_kit.example import Example, Message
from zephyr_kit.plugins import OFFERS, Plugins
from zephyr_kit.protocols import broken_laws
from zephyr_kit.testing import KITS, FilterLaws, JudgeLaws, Laws
from zephyr_kit.testing.laws import TEST, DoesNotApply, Law, kept_after_all, laws_of
from zephyr_kit.testing.observer import ENDED, HELD_OUT, STARTED, STEP
from zephyr_kit.testing.offer import OfferLaws

Outcome = Literal["holds", "broken", "broken openly", "does not apply", "not tried"]
ASK = (Message("user", "What is a lighthouse for?"),)
REPLIES = ("It warns ships of rocks, and tells sailors where they are.", "I do not know.", "as an ai, i CANNOT say. " * 20)
ROWS = tuple(Example(ASK, ((Message("assistant", reply),),), origin=f"rows:{n}") for n, reply in enumerate(REPLIES))
GENERAL = frozenset(law.name for law in laws_of(OfferLaws))
OWN: Mapping[type[Laws], Mapping[str, Any]] = {
    FilterLaws: {"rows": ROWS},
    JudgeLaws: {"dialogue": ASK, "better": REPLIES[0], "worse": REPLIES[1]},
}
"""What a kit needs besides its subject, where any will do."""
NEEDS = {
    "leaves_some_as_they_are": "rows of its own, some of which it removes",
    "reasons_can_be_counted": "rows of its own, some of which it removes",
    "prefers_the_better_reply_in_either_order": "a better and a worse reply of its own",
    "starts_a_job": "a word that it may start one",
    "tells_when_a_job_fails": "a word that it may start one",
}
"""Laws for which none will do."""


@dataclass(frozen=True)
class Finding:
    """What came of one law."""

    law: Law
    outcome: Outcome
    figures: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""
    """Of one that is broken, also a line on the smallest case that breaks it."""


@dataclass(frozen=True)
class Subject:
    """What is tried, and its laws; or why it cannot be."""

    name: str
    kit: type[Laws] | None
    obstacle: str = ""
    untried: Mapping[str, str] = field(default_factory=dict)
    """Laws that need more than is at hand, and what."""

    def findings(self) -> Iterator[Finding]:
        """Try every law; where something stands in the way of the rest, none but the one that says so."""
        assert self.kit is not None
        laws = sorted(laws_of(self.kit), key=lambda law: not law.name.startswith("has_no_problems"))
        obstacle, shut = "", ""
        for law in laws:
            behind = shut if law.name not in GENERAL else ""
            if obstacle or behind or law.name in self.untried:
                needs = f"it needs {self.untried.get(law.name)}: inherit {self.kit.__mro__[1].__name__} in a test"
                yield Finding(law, "not tried", remark=obstacle or behind or needs)
                continue
            found = _tried(self.kit, law)
            if law.name.startswith("has_no_problems") and found.outcome == "broken":
                obstacle = found.remark
                found = Finding(law, "not tried", remark=obstacle)
            if law.name == self.kit.gate and found.outcome == "broken":
                shut = f"not before it {law.words}"
            yield found


def subjects_of(plugins: Plugins, name: str, changes: Sequence[str] = ()) -> Iterator[Subject]:
    """Everything that an installed plugin offers; `changes` are `OFFER.KEY=VALUE`."""
    if name not in plugins.origins or name in plugins.blocked:
        raise ZkitError(f"no plugin {name!r} is installed{suggest(name, plugins.origins)}; a project's folder can be given as well")
    tables, origins = apply_changes({}, changes, "--set")
    for kind, (noun, hook) in OFFERS.items():
        for offer, (_, plugin) in plugins.offered_by(kind).items():
            if plugin == name:
                yield _offer(Builder(plugins.offers, "--set", origins), kind, offer, f"{noun} {offer}", KITS[hook], tables.get(offer, {}))
    if causes := plugins.broken(name):
        raise ZkitError(f"plugin {plugins.describe(name)} is broken: {'; '.join(causes)}")
    yield from _others(plugins.manager.get_plugin(name), plugins.hooks_of(name))


def subjects_in(folder: Path) -> Iterator[Subject]:
    """The laws that the tests of a project inherit."""
    sys.path[:0] = [str(folder), str(folder / "src")]
    files = sorted([*folder.glob("test_*.py"), *folder.glob("tests/**/test_*.py")])
    kits = [kit for file in files for kit in _kits_in(file)]
    if not kits:
        raise ZkitError(f"{folder}: no test_*.py there, or below tests/, inherits laws of zephyr_kit.testing")
    yield from (Subject(kit.__name__, kit) for kit in kits)


def _offer(builder: Builder, kind: type, offer: str, name: str, kit: type[Laws], table: Mapping[str, Any]) -> Subject:
    try:
        made = builder.convert(kind, {USE: offer, **table}, offer)
    except PresetError as error:
        return Subject(name, None, f"{str(error).removeprefix('--set: ')}; give it as --set {offer}.KEY=VALUE")
    return Subject(name, _with(kit, made), untried=NEEDS)


def _others(plugin: Any, hooks: Sequence[str]) -> Iterator[Subject]:
    """What a plugin does besides offering."""
    if "zkit_presets" in hooks:
        yield Subject("presets", _with(KITS["zkit_presets"], Path(plugin.zkit_presets())))
    if "zkit_commands" in hooks:
        yield Subject("commands", _with(KITS["zkit_commands"], plugin))
    if {STARTED, STEP, HELD_OUT, ENDED} & set(hooks):
        yield Subject("observer", _with(KITS[STARTED], plugin))


def _with(kit: type[Laws], subject: Any) -> type[Laws]:
    return type(f"Checked{kit.__name__}", (kit,), {kit.subject: subject, **OWN.get(kit, {})})


def _kits_in(file: Path) -> Iterator[type[Laws]]:
    spec = importlib.util.spec_from_file_location(f"checked_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # whoever unpickles looks there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno}: {where.line})"
        raise ZkitError(f"{file}: cannot be imported: {told}") from error
    for name, value in vars(module).items():
        if name.startswith("Test") and isinstance(value, type) and issubclass(value, Laws) and value.__module__ == module.__name__:
            yield value


def _tried(kit: type[Laws], law: Law) -> Finding:
    laws = kit()
    outcome, remark = _outcome(laws, law)
    reason = broken_laws(getattr(laws, kit.subject, None)).get(law.name)
    if reason is not None and outcome in ("holds", "broken"):
        outcome, remark = ("broken openly", reason) if outcome == "broken" else ("broken", kept_after_all(law.name))
    return Finding(law, outcome, getattr(laws, "figures", {}), remark)


def _outcome(laws: Laws, law: Law) -> tuple[Outcome, str]:
    method = inspect.unwrap(getattr(type(laws), TEST + law.name))
    wanted = list(inspect.signature(method).parameters)[1:]
    if others := [name for name in wanted if name != "tmp_path"]:
        return "not tried", f"it takes `{others[0]}`, which pytest gives: run pytest"
    try:
        with tempfile.TemporaryDirectory() as folder:
            method(laws, *(Path(folder) for _ in wanted))
    except DoesNotApply as why:
        return "does not apply", str(why)
    except Exception as error:
        if isinstance(error, AttributeError) and error.obj is laws:
            return "not tried", f"there is no `{error.name}`; if a fixture sets it, run pytest"
        told = [_told(error, getattr(laws, laws.subject, None)), *getattr(error, "__notes__", ())]
        return "broken", "\n".join(told)
    return "holds", ""


def _told(error: Exception, subject: object) -> str:
    """The error's first line, and where it was raised, unless that is a law that says what it wants."""
    text = (str(error).splitlines() or [""])[0].strip()
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    if not isinstance(error, AssertionError) or raised.passed_through(error, subject):
        return raised.told(error, subject)
    if text:
        return text if len(text) <= raised.MOST else f"{text[:raised.MOST]} …"
    line = (frames[-1].code_context or [""])[0].strip() if frames else ""
    return f"{raised.told(error, subject)} in `{line}`"

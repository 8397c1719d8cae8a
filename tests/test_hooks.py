"""Every hook is documented with its exact signature, exercised by a test, and observers see a run in order."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zephyr_kit import hookspecs
from zephyr_kit.example import Example, Message
from zephyr_kit.testing import CompleterLaws, FilterLaws, JudgeLaws

ROOT = Path(__file__).parents[1]
SPECS = [node for node in ast.parse(Path(hookspecs.__file__).read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
NAMES = [spec.name for spec in SPECS]


def signature(spec: ast.FunctionDef) -> str:
    return f"{spec.name}({ast.unparse(spec.args)}) -> {ast.unparse(spec.returns)}"


def sections() -> dict[str, str]:
    """Heading and text of each section of the page."""
    parts = re.split(r"^## `(.+)`$", (ROOT / "docs" / "reference" / "hooks.md").read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_has_every_hook_and_no_other():
    assert sorted(sections()) == sorted(map(signature, SPECS))


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_a_hook_is_explained_with_an_example_that_is_python(spec):
    text = sections()[signature(spec)]
    prose, example = re.fullmatch(r"\s*(.+?)\n\n```python\n(.+)```\s*", text, flags=re.DOTALL).groups()
    assert 1 <= len(re.findall(r"[.;]\s|\.$", prose)) <= 3
    function = next(node for node in ast.parse(example).body if isinstance(node, ast.FunctionDef))
    assert function.name == spec.name
    assert {argument.arg for argument in function.args.args} <= {argument.arg for argument in spec.args.args}
    assert ast.unparse(function.decorator_list[0]) == "hookimpl"


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_a_hook_is_marked_and_has_a_docstring(spec):
    assert ast.get_docstring(spec)
    assert hasattr(getattr(hookspecs, spec.name), "zephyr_kit_spec")


@pytest.mark.parametrize("name", NAMES)
def test_a_hook_is_exercised_by_a_test(name):
    uses = re.compile(rf"\b{name}\b")
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if file.name != Path(__file__).name]
    assert any(uses.search(file.read_text("utf-8")) for file in files)


# The classes on the page


def offered(name: str) -> dict[str, Any]:
    """What the example of a hook offers, run as the plugin that it is."""
    module = ModuleType(f"page_{name}")
    sys.modules[module.__name__] = module  # whoever unpickles looks there
    (text,) = (text for heading, text in sections().items() if heading.startswith(f"{name}("))
    exec(re.search(r"```python\n(.+)```", text, flags=re.DOTALL)[1], vars(module))
    return vars(module)[name]()


def said(count: int) -> Example:
    return Example((Message("user", "Why?"),), ((Message("assistant", " ".join(["so"] * count)),),), origin=f"here:{count}")


class TestShort(FilterLaws):
    filter = offered("zkit_filters")["short"](words=3)
    rows = (said(1), said(3), said(4), said(9))

    def test_removes_what_is_long(self):
        assert [self.filter.look(row).example is None for row in self.rows] == [False, False, True, True]
        assert type(self.filter)(words=4).fingerprint() != self.filter.fingerprint()


class TestParrot(CompleterLaws):
    completer = offered("zkit_completers")["parrot"](times=2)

    def test_its_key_is_in_its_fingerprint(self, tmp_path):
        with self.bench(tmp_path) as bench:
            assert type(self.completer)().fingerprint(bench) != self.completer.fingerprint(bench)


class TestShortest(JudgeLaws):
    judge = offered("zkit_judges")["shortest"]()
    dialogue = (Message("user", "What is a lighthouse for?"),)
    better, worse = "It warns ships.", "It is, as a matter of fact, there to warn ships."

    def test_its_key_is_in_its_fingerprint(self):
        assert type(self.judge)(enough=5).fingerprint() != self.judge.fingerprint()

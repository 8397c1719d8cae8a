"""The page of what an objective is given and what it gives, from signatures and docstrings."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from itertools import zip_longest
from types import ModuleType

import zephyr_kit
from zephyr_kit.protocols import objective

ABOUT = """\
Made from the code's signatures and docstrings. All but `Unit`, which is in `zephyr_kit`, are imported from `zephyr_kit.protocols`.
A tensor's name, or what is said of it, carries its shape: M target tokens, N completions. [Write an objective](../how-to/objective.md)
has worked ones; the [laws](../laws.md#objectives) are what every one must obey."""
Definition = ast.ClassDef | ast.FunctionDef


def objectives_page() -> str:
    """Markdown: every public name of the protocol, and what each class has."""
    unit = next(each for each in definitions(zephyr_kit) if each.name == "Unit")
    found = [*definitions(objective), unit]
    parts = ["# Objectives: what they get and give", ABOUT]
    for each in found:
        parts += _class(each) if isinstance(each, ast.ClassDef) else [f"## `{signature(each)}`", _doc(each)]
    return "\n\n".join(parts) + "\n"


def definitions(module: ModuleType) -> list[Definition]:
    """The public classes and functions of a module, in their order."""
    return [each for each in ast.parse(inspect.getsource(module)).body if isinstance(each, Definition) and is_public(each.name)]


def is_public(name: str) -> bool:
    """Whether a name is for others; an objective is called."""
    return not name.startswith("_") or name == "__call__"


def signature(function: ast.FunctionDef) -> str:
    """As it is written, without `self`."""
    given = ast.unparse(function.args).removeprefix("self").removeprefix(", ")
    return f"{function.name}({given}) -> {ast.unparse(function.returns) if function.returns else None}"


def _class(each: ast.ClassDef) -> list[str]:
    return [f"## `{each.name}`", _doc(each), "\n".join(f"- **`{head}`** {text}" for head, text in _members(each))]


def _members(each: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Fields, properties and methods, each with what is said of it."""
    for statement, after in zip_longest(each.body, each.body[1:]):
        if isinstance(statement, ast.FunctionDef) and is_public(statement.name):
            yield _head(statement), " ".join(_doc(statement).split())
        elif isinstance(statement, ast.AnnAssign | ast.Assign):
            is_said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            head = ast.unparse(statement).replace("field(default_factory=dict)", "{}")
            yield head, " ".join(str(after.value.value).split()) if is_said else ""


def _head(function: ast.FunctionDef) -> str:
    is_property = any(isinstance(each, ast.Name) and each.id == "property" for each in function.decorator_list)
    return f"{function.name}: {ast.unparse(function.returns)}" if is_property and function.returns else signature(function)


def _doc(each: Definition) -> str:
    return ast.get_docstring(each) or ""

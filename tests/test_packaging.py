"""What is declared, what lies in the folders, and what is installed are the same."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

import zephyr_kit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PLUGINS = sorted(folder for folder in (ROOT / "plugins").iterdir() if (folder / "__init__.py").exists())
NAMES = {folder.name for folder in PLUGINS}


def test_every_plugin_is_declared_and_installed():
    declared = PROJECT["project"]["entry-points"]["zephyr_kit"]
    assert set(declared.values()) == NAMES
    assert {name: f"zkit_{name}" for name in declared} == declared
    installed = distribution("zephyr-kit").entry_points.select(group="zephyr_kit")
    assert {entry.name: entry.value for entry in installed} == declared


def test_nothing_else_lies_among_the_plugins():
    others = {path.name for path in (ROOT / "plugins").iterdir() if path.suffix != ".md" and path.name != "__pycache__"}
    assert others == NAMES


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_is_typed_and_says_what_it_is(folder):
    assert (folder / "py.typed").is_file()
    module = ast.parse((folder / "__init__.py").read_text("utf-8"))
    assert len(ast.get_docstring(module) or "") > 20
    imported = {node.module.partition(".")[0] for node in module.body if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name.partition(".")[0] for node in module.body if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= {"__future__", "collections", "pathlib", "typing", "zephyr_kit"}, "heavy imports stand inside hooks"


def test_import_linter_knows_every_plugin():
    rules = PROJECT["tool"]["importlinter"]
    assert set(rules["root_packages"]) == NAMES | {"zephyr_kit"}
    contracts = {contract["name"]: contract for contract in rules["contracts"]}
    assert set(contracts["The core knows no plugin by name"]["forbidden_modules"]) == NAMES
    assert set(contracts["Plugins do not know each other"]["modules"]) == NAMES
    assert contracts["Plugins do not know each other"]["ignore_imports"] == ["zkit_unsloth.** -> zkit_mistral.**"]


def test_presets_are_data_only():
    assert {path.suffix for path in (ROOT / "presets").rglob("*") if path.is_file()} == {".toml"}


def test_the_package_is_typed_and_imports_as_installed():
    assert (ROOT / "zephyr_kit" / "py.typed").is_file()
    assert Path(zephyr_kit.__file__).parent == ROOT / "zephyr_kit"


def test_versions_agree():
    assert version("zephyr-kit") == zephyr_kit.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", zephyr_kit.__version__)
    for file, pattern in (("CITATION.cff", r"^version: \"?([\d.]+)\"?$"), ("CHANGELOG.md", r"^## \[?(\d+\.\d+\.\d+)")):
        found = re.search(pattern, (ROOT / file).read_text("utf-8"), flags=re.MULTILINE)
        assert found, f"{file} names no version"
        assert found[1] == zephyr_kit.__version__


def test_trl_is_for_developers_only():
    assert not [line for line in PROJECT["project"]["dependencies"] if line.startswith("trl")]
    extras = PROJECT["project"]["optional-dependencies"]
    assert {name for name, lines in extras.items() if any(line.startswith("trl") for line in lines)} == {"bench", "dev"}

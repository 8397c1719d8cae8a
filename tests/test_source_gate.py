"""What must not stand in the source: each is how others have let a file or a preset run code."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("zephyr_kit", "plugins") for path in (ROOT / folder).rglob("*.py"))
FORBIDDEN = {
    "weights_only = False": lambda node: is_keyword(node, "weights_only", value=False),
    "trust_remote_code = True": lambda node: is_keyword(node, "trust_remote_code", value=True),
    "shell = True": lambda node: is_keyword(node, "shell", value=True),
    "allow_pickle = True": lambda node: is_keyword(node, "allow_pickle", value=True),
    "local_files or code asked for at a prompt": lambda node: is_call(node, "input"),
    "eval, exec or compile": lambda node: is_call(node, "eval", "exec", "compile"),
    "pickle": lambda node: is_import(node, "pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    "yaml": lambda node: is_import(node, "yaml"),
    "archives": lambda node: is_import(node, "tarfile", "zipfile") or is_method(node, "extractall", "unpack_archive"),
    "os.system, os.popen": lambda node: is_method(node, "system", "popen"),
    "torch.load": lambda node: is_method(node, "load") and ast.unparse(node.func) == "torch.load",
    "a listener": lambda node: is_method(node, "bind", "listen", "create_server", "serve_forever"),
    "a process": lambda node: is_import(node, "subprocess"),
    "models read elsewhere than where they are seen to": lambda node: is_method(node, "from_pretrained"),
}
ALLOWED = {
    "local_files or code asked for at a prompt": {"zephyr_kit/cli/chat.py"},
    # Between a process and the workers that it has started; never from a file.
    "pickle": {"zephyr_kit/workers.py", *(f"zephyr_kit/testing/{name}.py" for name in ("backend", "filter", "optimizer"))},
    # The safe loader alone, with line numbers.
    "yaml": {"plugins/zkit_import/yaml_file.py"},
    # What ranks that a certificate has started leave for it: tensors, read as nothing else.
    "torch.load": {"zephyr_kit/spawned.py"},
    # The meeting of one machine's ranks, the chat server and the board, on loopback.
    "a listener": {"plugins/zkit_launchers/meeting.py", "zephyr_kit/serving/server.py", "zephyr_kit/cli/board.py"},
    # Children of ours, the scheduler's own sbatch, and llama.cpp's programs: none by a shell.
    "a process": {
        "plugins/zkit_launchers/machine.py",
        "zephyr_kit/testing/filter.py",
        "zephyr_kit/cli/child.py",
        "zephyr_kit/template_process.py",
        "plugins/zkit_export/llama_cpp.py",
        "plugins/zkit_launchers/slurm.py",
    },
    "models read elsewhere than where they are seen to": {
        "plugins/zkit_mistral/opening.py",
        # An adapter's configuration, looked at before; and what was just written here, read as a server would.
        "plugins/zkit_mistral/merging.py",
        "plugins/zkit_export/served.py",
        "plugins/zkit_mistral/adapters.py",
        "plugins/zkit_feedback/classifier.py",
    },
}


def is_keyword(node: ast.AST, name: str, *, value: bool) -> bool:
    if isinstance(node, ast.keyword):
        return node.arg == name and isinstance(node.value, ast.Constant) and node.value.value is value
    pairs = zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ()
    return any(isinstance(k, ast.Constant) and k.value == name and isinstance(v, ast.Constant) and v.value is value for k, v in pairs)


def is_call(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def is_method(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names


def is_import(node: ast.AST, *names: str) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] in names for alias in node.names)
    return isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in names


def found(what: str, source: str) -> list[int]:
    return [getattr(node, "lineno", 0) for node in nodes(source) if FORBIDDEN[what](node)]


@cache
def nodes(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


@pytest.mark.parametrize("what", FORBIDDEN)
def test_it_does_not_stand_in_the_source(what: str) -> None:
    places = {f"{path.relative_to(ROOT)}": found(what, path.read_text("utf-8")) for path in SOURCES}
    assert {place: lines for place, lines in places.items() if lines and place not in ALLOWED.get(what, set())} == {}
    assert all(places[place] for place in ALLOWED.get(what, set())), "an exception that is no longer needed"


@pytest.mark.parametrize(
    ("what", "source"),
    [
        ("weights_only = False", "f(x, weights_only=False)"),
        ("trust_remote_code = True", "f(**{'trust_remote_code': True})"),
        ("shell = True", "run('x', shell=True)"),
        ("eval, exec or compile", "eval('1')"),
        ("pickle", "from pickle import loads"),
        ("yaml", "import yaml"),
        ("archives", "t.extractall()"),
        ("a listener", "s.bind(('', 0))"),
    ],
)
def test_the_gate_finds(what: str, source: str) -> None:
    assert found(what, source)


SECURITY = re.compile(r"(trust|safe|allow|permit|secret|token\b|path|pickle|remote|denied|forbid)", re.I)


def test_no_check_of_safety_is_an_assert() -> None:
    """`python -O` takes those out (CVE-2026-41523)."""
    asserts = [
        (f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.test))
        for path in SOURCES
        if "testing" not in path.parts
        for node in nodes(path.read_text("utf-8"))
        if isinstance(node, ast.Assert)
    ]
    assert not [place for place, test in asserts if SECURITY.search(test)]

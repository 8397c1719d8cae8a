"""`zkit plugin new` and `check`: what is written passes its laws as written, and the example is what is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zephyr_kit import cli
from zephyr_kit.projects import KINDS, Names, texts, write_project

EXAMPLE = Path(__file__).parents[1] / "examples" / "zkit-hinge"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return (caught.value.code, *capsys.readouterr())


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("projects")
    return {kind: write_project(f"my-{kind}", kind, folder) for kind in KINDS}


def test_the_example_is_what_is_written():
    there = {str(path.relative_to(EXAMPLE)) for path in EXAMPLE.rglob("*") if path.is_file() and "cache" not in str(path)}
    written = dict(texts(Names("hinge", "objective")))
    assert there == set(written)
    for path, text in written.items():
        assert (EXAMPLE / path).read_text("utf-8") == text, f"{path}: zkit plugin new hinge --kind objective --into examples"


def test_every_kind_passes_its_own_tests_as_written(projects):
    """Without warnings; all in one process, which imports torch once."""
    start = [sys.executable, "-m", "pytest", "-q", "-rs", "-W", "error", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    paths = {"PYTHONPATH": os.pathsep.join(map(str, projects.values())), "PYTHONDONTWRITEBYTECODE": "1"}
    tests = [str(folder / "tests") for folder in projects.values()]
    place, environment = next(iter(projects.values())).parent, {**os.environ, **paths}
    done = subprocess.run([*start, *tests], cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 10 * len(KINDS)
    skipped = re.findall(r"^SKIPPED .*", done.stdout, re.MULTILINE)
    assert [line for line in skipped if "zephyr_kit/testing/laws.py" not in line] == []  # but for laws that do not apply


def test_a_project_is_small_and_whole(projects):
    for kind, folder in projects.items():
        module = (folder / f"zkit_my_{kind}.py").read_text("utf-8")
        assert len(module.splitlines()) < (230 if kind == "backend" else 80), kind
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert {"pyproject.toml", "README.md", ".github/workflows/tests.yml", f"tests/test_zkit_my_{kind}.py"} <= files
        assert not [path for path in files if "$" in (folder / path).read_text("utf-8").replace("$(", "")]


def test_a_project_can_be_checked_without_pytest(projects, capsys):
    code, out, _ = call(capsys, "plugin", "check", projects["objective"])
    assert code == 0
    assert "TestMyObjective\n  ok      declares what it compares\n" in out
    assert re.search(r"ok      adds up over examples  \(largest difference (0|\de-\d\d|\d\.\de-\d\d)\)", out)
    assert out.endswith("13 hold\n")
    module = projects["objective"] / "zkit_my_objective.py"
    module.write_text(module.read_text().replace("(1 - margin).relu().sum()", "(1 - margin).relu().mean()"))
    del sys.modules["zkit_my_objective"]
    code, out, _ = call(capsys, "plugin", "check", projects["objective"])
    assert code == 1
    assert "BROKEN  adds up over examples  (largest difference " in out
    assert "without it, the result depends on micro-batches, packing and the number of devices" in out
    assert out.endswith("10 hold, 3 broken\n")


def test_what_is_installed_can_be_checked_by_name(capsys):
    code, out, _ = call(capsys, "plugin", "check", "sft")
    assert (code, out.startswith("objective sft\n"), "\nobjective dft\n" in out, out.endswith("26 hold\n")) == (0, True, True, True)
    code, out, _ = call(capsys, "plugin", "check", "quickstart", "--set", "quickstart.part=chat", "--set", "quickstart.count=8")
    assert "data source quickstart" in out
    assert "suite quickstart" in out
    code, out, _ = call(capsys, "plugin", "check", "sources")
    assert code == 1, "nothing was tried"
    assert "data source jsonl\n  not tried: [jsonl] needs `path`; give it as --set jsonl.KEY=VALUE" in out
    code, _, err = call(capsys, "plugin", "check", "sfft")
    assert code != 0
    assert "no plugin 'sfft' is installed; did you mean `sft`?" in err


def test_who_answers_each_hook(capsys):
    code, out, _ = call(capsys, "plugins", "--hooks")
    assert code == 0
    assert re.search(r"^\d+ plugins found and imported in [\d.,]+ ms; the slowest was \w+, [\d.,]+ ms$", out, re.MULTILINE)
    assert re.search(r"^zkit_objectives +[\d.,]+ ms  sft, preference", out, re.MULTILINE)
    assert re.search(r"^zkit_run_started +nobody$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("My Loss", "objective", "is made of small letters, digits and dashes"),
        ("none", "objective", "its class would be called None"),
        ("scores", "objective", "its class would be called Scores"),
    ],
)
def test_names_that_cannot_be(name, kind, why, tmp_path, capsys):
    code, _, err = call(capsys, "plugin", "new", name, "--kind", kind, "--into", tmp_path)
    assert (code, why in err) == (1, True), err
    assert not list(tmp_path.iterdir())


NO_NAMES = [
    ("sft", "something of that name is installed already"),
    ("dpo", "something of that name is installed already"),
    ("ab-test", "pytest takes a module whose name ends in `_test` for tests"),
    ("../x", "a plugin's name is made of small letters, digits and dashes"),
]


@pytest.mark.parametrize(("name", "why"), NO_NAMES)
def test_names_that_would_not_work_are_refused(tmp_path, capsys, name, why):
    code, _, err = call(capsys, "plugin", "new", name, "--kind", "objective", "--into", tmp_path)
    assert (code, why in err, list(tmp_path.iterdir())) == (1, True, [])


def test_a_place_that_cannot_be_written_is_told(capsys):
    code, _, err = call(capsys, "plugin", "new", "abc", "--kind", "objective", "--into", "/proc")
    assert (code, err.startswith("error: /proc/zkit-abc: cannot be written: ")) == (1, True)


def test_importing_a_project_imports_no_torch(projects):
    """`zkit --help` imports every plugin."""
    tried = f"import sys; {'; '.join(f'import zkit_my_{kind}' for kind in projects)}; print('torch' in sys.modules)"
    paths = {"PYTHONPATH": os.pathsep.join(map(str, projects.values())), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", tried], env={**os.environ, **paths}, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["zkit-preference", "zkit_preference", "preference"])
def test_a_plugin_is_known_by_its_project_too(name):
    from zephyr_kit.cli.plugin import _plugin_named
    from zephyr_kit.plugins import Plugins

    assert _plugin_named(name, Plugins()) == "preference"


def test_nothing_is_written_over(tmp_path, capsys):
    assert call(capsys, "plugin", "new", "zkit-soft-margin", "--kind", "objective", "--into", tmp_path)[0] == 0
    assert "class SoftMargin:" in (tmp_path / "zkit-soft-margin" / "zkit_soft_margin.py").read_text()
    code, _, err = call(capsys, "plugin", "new", "soft-margin", "--kind", "objective", "--into", tmp_path)
    assert (code, "is there already" in err) == (1, True)

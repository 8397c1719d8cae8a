"""The command `zkit`: quick where it must be, plain where something is wrong, and a whole tiny run with a talk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import forked
import pytest
from distributions import HINGE, write_distribution
from tiny_presets import FROM_SCRATCH

from zephyr_kit import ZkitError, __version__, cli
from zephyr_kit.cli.find import find_preset
from zephyr_kit.config import PresetError
from zephyr_kit.plugins import Plugins

PRESETS = Path(__file__).parents[1] / "presets"

RUN = "from zephyr_kit.cli import main; main()"
HEAVY = ["torch", "transformers", "datasets", "pydantic", "numpy", "rich"]
COUNT_HEAVY = f"""
import sys
from zephyr_kit.cli import main
try:
    main(sys.argv[1:])
finally:
    print("heavy:", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""

TINY = f"""
name = "tiny"
{FROM_SCRATCH}[stages.base]
objective = "sft"
data = [{{ use = "quickstart", part = "chat", count = 8 }}]
max_length = 512
train = {{ steps = 2, examples_per_step = 4, learning_rate = 1e-3 }}
[stages.sft]
objective = "sft"
data = [{{ use = "quickstart", part = "chat", count = 8 }}]
max_length = 512
train = {{ steps = 1, examples_per_step = 4, learning_rate = 1e-3 }}
"""

OBSERVER = """
    from pathlib import Path
    import click
    from zephyr_kit import hookimpl

    def note(run, text):
        with (run.folder.parent / "observed.txt").open("a") as file:
            file.write(f"{run.stage} {text}\\n")

    @hookimpl
    def zkit_run_started(run):
        note(run, f"started {run.first_step}/{run.num_steps}")

    @hookimpl
    def zkit_step_ended(run, report):
        note(run, f"step {report.step}")

    @hookimpl
    def zkit_held_out(run, step, metrics):
        note(run, f"held out {step} {sorted(metrics)}")

    @hookimpl
    def zkit_run_ended(run, error):
        note(run, f"ended {error}")

    @hookimpl
    def zkit_presets():
        return Path(__file__).parent / "more"

    @hookimpl
    def zkit_commands(cli):
        cli.add_command(click.Command("hello", callback=lambda: click.echo("hello there")))
"""


def zkit(*arguments: object, cwd: Path, stdin: str = "", path: Path | None = None, runner: str = RUN) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", runner]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **({"PYTHONPATH": str(path)} if path else {})}
    return subprocess.run(
        [*start, *map(str, arguments)], cwd=cwd, input=stdin, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """In this process: the exit code, and what was printed."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return caught.value.code, captured.out, captured.err


QUICK = ["--help", "--version", "presets", "cache", "cache references", "run --help", "rnu", "run no-such-preset"]


@pytest.mark.parametrize("arguments", [line.split() for line in QUICK], ids=QUICK)
def test_what_must_be_quick_imports_nothing_heavy(arguments, tmp_path):
    done = zkit(*arguments, cwd=tmp_path, runner=COUNT_HEAVY)
    assert done.stderr.splitlines()[-1] == "heavy:"


def test_a_misspelt_preset_needs_no_model_library(tmp_path):
    (tmp_path / "typo.toml").write_text('nam = "x"', "utf-8")
    done = zkit("run", "typo.toml", cwd=tmp_path, runner=COUNT_HEAVY)
    assert done.returncode == 2
    assert done.stderr == "error: typo.toml: does not know the key `nam` (= \"x\"); did you mean `name`?\nheavy:\n"
    typo = (PRESETS / "zephyr-qlora.toml").read_text("utf-8").replace("beta = 0.01", "bta = 0.01")
    (tmp_path / "typo.toml").write_text(typo, "utf-8")
    done = zkit("run", "typo.toml", cwd=tmp_path, runner=COUNT_HEAVY)
    assert done.returncode == 2
    assert "[stages.dpo.objective] does not know the key `bta` (= 0.01); did you mean `beta`?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not {"transformers", "datasets"} & set(done.stderr.splitlines()[-1].split())
    assert list(tmp_path.iterdir()) == [tmp_path / "typo.toml"]


def test_version_and_help(capsys):
    assert call(capsys, "--version") == (0, f"zkit, version {__version__}\n", "")
    code, out, _ = call(capsys, "-h")
    assert code == 0
    assert all(name in out for name in ("run", "chat", "presets", "plugins", "schema"))
    assert "..." not in out.replace("[ARGS]...", "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rnu"], 2, "No such command 'rnu'"),
        (["run"], 2, "Missing argument 'PRESET'"),
        (["run", "zephyr-qlor"], 2, "there is no preset 'zephyr-qlor': no such file, and no such name; did you mean `zephyr-qlora`?"),
        (["run", "elsewhere/quickstart.toml"], 2, "there is no preset 'elsewhere/quickstart.toml': no such file"),
        (["run", "quickstart", "--set", "seed"], 2, "--set seed: write it as path.to.key=value"),
        (
            ["presets", "show", "quickstart", "--set", "stages.dpo.objective.beta=-1"],
            2,
            "`beta` = -1: should be greater than 0 (from command line)",
        ),
        (["run", "quickstart", "--output", "/proc/nowhere/run"], 4, "cannot make the folder of the run, /proc/nowhere/run: "),
        (["run", "quickstart", "--reuse", "/nowhere/runs"], 2, "there is no folder /nowhere/runs"),
        (["run", "quickstart", "--reuse", "/hom"], 2, "there is no folder /hom; did you mean `home`?"),
        (["chat", "/"], 2, "/: holds neither preset.toml nor config.json; give the folder that `zkit run` wrote"),
        (["chat", "/nowhere"], 2, "/nowhere: there is no such folder, and it is no name of a repository"),
    ],
)
def test_mistakes_are_told_in_a_line(capsys, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    exit_code, out, err = call(capsys, *arguments)
    assert (exit_code, out) == (code, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PresetError("bad"), 2, "error: bad\n"),
        (ZkitError("cannot"), 1, "error: cannot\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.ClickException("how?"), 1, "Error: how?\n"),
    ],
)
def test_exit_codes(capsys, monkeypatch, error, code, message):
    def fail():
        raise error

    monkeypatch.setattr(cli, "build", lambda: click.Command("zkit", callback=fail))
    exit_code, _, err = call(capsys)
    assert (exit_code, err.lstrip("\n")) == (code, message)


def test_presets_lists_every_one(capsys):
    code, out, _ = call(capsys, "presets")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert {file.stem for file in PRESETS.glob("*.toml")} <= set(lines)
    assert lines["quickstart"].startswith("Zephyr in miniature")


@pytest.mark.parametrize("given", ["quickstart", "quickstart.toml", "presets/quickstart.toml", PRESETS / "quickstart.toml"])
def test_a_preset_is_found_by_name_and_by_path_from_anywhere(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_preset(str(given), Plugins(discover=False)) == PRESETS / "quickstart.toml"


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart.toml").write_text("")
    assert find_preset("quickstart.toml", Plugins(discover=False)) == Path("quickstart.toml")
    assert find_preset("quickstart", Plugins(discover=False)) == PRESETS / "quickstart.toml"


def test_presets_show_prints_values_with_their_origin(capsys):
    code, out, _ = call(capsys, "presets", "show", "quickstart", "--set", "stages.dpo.objective.beta=0.05")
    lines = {line.split(" = ")[0].strip(): line.split(" = ", 1)[1] for line in out.splitlines()}
    assert code == 0
    assert lines["stages.dpo.objective.beta"] == "0.05  # command line"
    assert lines["stages.dpo.objective.label_smoothing"] == "0.0  # default of zkit_preference"
    assert lines["name"] == f'"quickstart"  # {PRESETS / "quickstart.toml"}'


def test_schema_is_json(capsys):
    code, out, _ = call(capsys, "schema")
    assert code == 0
    assert json.loads(out)["required"] == ["name", "model", "stages"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of distributions: one works, one observes, one is broken."""
    folder = tmp_path_factory.mktemp("site")
    write_distribution(folder, "toy-hinge", {"toy": "zkit_toy"}, code=HINGE)
    write_distribution(folder, "zkit-observer", {"observer": "zkit_observer"}, code=OBSERVER)
    write_distribution(folder, "zkit-steam", {"steam": "zkit_steam"}, code="import not_there_at_all\n")
    (folder / "more").mkdir()
    (folder / "more" / "theirs.toml").write_text('description = "Of a plugin"', "utf-8")
    (folder / "more" / "quickstart.toml").write_text("not TOML", "utf-8")
    return folder


def test_plugins_lists_what_each_offers_and_what_is_broken(site):
    done = zkit("plugins", cwd=site, path=site)
    assert (done.returncode, done.stderr) == (0, "")
    blocks = done.stdout.replace("\n    ", "\n>").split("\n")
    assert ">broken: import failed: ModuleNotFoundError: No module named 'not_there_at_all'" in blocks
    assert blocks[blocks.index("toy  (toy-hinge 1.2, module zkit_toy)") + 1] == ">objective toy_hinge"
    assert blocks[blocks.index(f"sft  (zephyr-kit {__version__}, module zkit_sft)") + 1] == ">objective sft"
    assert {">backend mistral", ">data source quickstart", ">hook zkit_presets", ">hook zkit_run_ended"} <= set(blocks)


def test_a_broken_plugin_does_not_take_presets_down(site):
    done = zkit("presets", cwd=site, path=site)
    assert done.returncode == 0
    assert "theirs" in done.stdout
    assert "zephyr-qlora" in done.stdout
    assert "(broken: " in done.stdout
    cause = "import failed: ModuleNotFoundError: No module named 'not_there_at_all'"
    assert done.stderr == f"  plugin steam (zkit-steam 1.2) is broken: {cause}\n"


def test_presets_and_commands_of_plugins(site):
    done = zkit("run", "quickstart", cwd=site, path=site)
    assert done.returncode == 2
    assert "two presets are named 'quickstart': " in done.stderr
    assert zkit("hello", cwd=site, path=site).stdout == "hello there\n"


@pytest.mark.slow
def test_a_run_is_observed_continued_and_talked_to(site, tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(TINY, "utf-8")
    done = zkit("run", "tiny.toml", "--output", "out", "--device", "cpu", cwd=tmp_path, path=site)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("to talk to it:  zkit chat out\n")
    assert (tmp_path / "out" / "observed.txt").read_text("utf-8").splitlines() == [
        "base started 0/2",
        "base step 1",
        "base step 2",
        "base ended None",
        "sft started 0/1",
        "sft step 1",
        "sft ended None",
    ]
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    again = forked.zkit("run", "tiny.toml", "--output", "out", "--device", "cpu")
    assert "stage base: done before, nothing changed" in again.stdout
    # From another folder, with two turns and an empty line.
    monkeypatch.chdir(site)
    talk = forked.zkit("chat", tmp_path / "out", "--max-new-tokens", "3", "--temperature", "0", stdin="Hello!\nWhy?\n\nnever read\n")
    assert talk.returncode == 0
    assert talk.stdout.startswith(f"{tmp_path / 'out' / 'sft' / 'model'} (an empty line ends)\n\n> ")
    assert talk.stdout.count("\n> ") == 3
    at_end = forked.zkit("chat", tmp_path / "out", "--stage", "base", "--max-new-tokens", "3", "--system", "Be brief.", stdin="Hello!")
    assert at_end.returncode == 0
    assert at_end.stdout.startswith(str(tmp_path / "out" / "base" / "model"))
    lost = forked.zkit("chat", tmp_path / "out", "--stage", "bsae")
    assert (lost.returncode, lost.stderr) == (2, f"error: {tmp_path / 'out'}: has no trained stage `bsae`; did you mean `base`?\n")

"""`zkit doctor`: what is too old is refused, here and before a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zephyr_kit import doctor
from zephyr_kit.cli import main
from zephyr_kit.plugins import Plugins

ROOT = Path(__file__).parents[1]


def call(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    return int(ended.value.code or 0), capsys.readouterr().out


def test_this_environment_is_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = call(capsys)
    assert (code, out.splitlines()[-1]) == (0, "nothing is in the way")
    for name in ("python", "torch", "transformers", "accelerate", "jinja2", "memory", "cache", "attention segments", "mistral kernels"):
        assert re.search(rf"^(ok|note) +{name} ", out, re.MULTILINE), name


@pytest.mark.parametrize(
    ("name", "version"),
    [("torch", "2.9.1+cu126"), ("transformers", "5.2.0"), ("accelerate", "1.14.0"), ("jinja2", "3.1.5"), ("torch", None), ("peft", None)],
)
def test_what_is_too_old_or_missing_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, version: str | None
) -> None:
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda asked: version if asked == name else real(asked))
    code, out = call(capsys)
    assert (code, out.splitlines()[-1]) == (1, "1 refused")
    assert re.search(rf"^NO +{name} +{re.escape(version or 'missing')}", out, re.MULTILINE)
    if name in doctor.FLOORS:
        assert len(doctor.version_problems()) == 1
        assert "pip install" in doctor.version_problems()[0]


def test_newer_ones_and_builds_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("2.10.0", "2.10.0+cu128", "2.13.0", "5.3", "10.0"):
        monkeypatch.setattr(doctor, "installed", lambda _, version=version: version)
        assert not [problem for problem in doctor.version_problems() if problem.startswith("torch") and version != "5.3"]


def test_the_floors_are_those_of_the_package() -> None:
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    for name, (floor, _) in doctor.FLOORS.items():
        found = re.search(rf'"{name}>=([\d.]+)', declared)
        assert found, name
        assert tuple(map(int, found[1].split("."))) >= tuple(map(int, floor.split(".")))


def test_a_broken_plugin_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plugins, "broken", lambda _, name: ["import failed: no reason"] if name == "sft" else [])
    code, out = call(capsys)
    assert code == 1
    assert re.search(r"^NO +plugin sft .*import failed: no reason", out, re.MULTILINE)


def test_extras_and_plugins_tell_what_they_lack(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.requires
    wanted = ["torch>=2", "torch>=999", "no-such-thing", 'not-here; extra == "more"', 'nor-here; python_version < "3"']
    monkeypatch.setattr(doctor, "requires", lambda name: wanted if name == "zkit-theirs" else real(name))
    assert doctor.lacking("zkit-theirs") == ["torch>=999", "no-such-thing"]
    assert doctor.lacking("zkit-theirs", "more") == ["not-here"]
    assert doctor.lacking("no-such-distribution") == []
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "gguf" else "9999.0")
    out = call(capsys)[1]
    assert re.search(r"^ok +extra gguf +lacks gguf>=[\d.]+ +pip install 'zephyr-kit\[gguf\]'$", out, re.MULTILINE)
    assert re.search(r"^ok +extra fp8 +torchao 9999\.0$", out, re.MULTILINE)
    assert re.search(r"^ok +extra eval .*, lacks setuptools<81 +pip install 'zephyr-kit\[eval\]'$", out, re.MULTILINE)

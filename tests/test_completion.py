"""What the shell completes: presets, suites, runs and their stages, in no time."""

from __future__ import annotations

import pytest
from test_cli import COUNT_HEAVY, zkit


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("zkit run quicks", {"file,quicks", "plain,quickstart"}),
        ("zkit evaluate --suite per", {"file,per", "plain,perplexity"}),
        ("zkit evaluate runs/a runs/b --stage d", {"plain,dpo"}),
        ("zkit chat runs/a --stage ", {"plain,dpo", "plain,sft"}),
        ("zkit export ru", {"dir,ru", "plain,runs/a", "plain,runs/b"}),
        ("zkit export runs/a --stage s", {"plain,sft"}),
        ("zkit chat runs/a/", {"dir,runs/a/"}),
    ],
)
def test_the_shell_completes_what_is_there_and_imports_nothing_heavy(line, offered, tmp_path, monkeypatch):
    for place in ("a/sft/model", "a/dpo/model", "a/feedback", "b/sft/model"):
        (tmp_path / "runs" / place).mkdir(parents=True)
        (tmp_path / "runs" / place[0] / "preset.toml").touch()
    words = line.split(" ")
    for name, value in {"_ZKIT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}.items():
        monkeypatch.setenv(name, value)
    done = zkit(cwd=tmp_path, runner=COUNT_HEAVY)
    assert set(done.stdout.splitlines()) == offered, done.stderr
    # In bash, what stands before a file or a folder is forgotten.
    assert all(row.startswith("plain") for row in done.stdout.splitlines()[1:])
    assert done.stderr.splitlines()[-1] == "heavy:"

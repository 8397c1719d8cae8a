"""What stands in the way of a push is told before the export."""

from __future__ import annotations

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError
from test_cli import call
from zkit_export.hub import check_hub

from zephyr_kit import ZkitError


def logged_in(monkeypatch, **repository) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", lambda self: {"name": "me"})
    if repository:
        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda self, name: SimpleNamespace(**repository))


def test_a_name_that_is_none_is_told_before(monkeypatch, tmp_path, capsys):
    logged_in(monkeypatch)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    code, _, err = call(capsys, "export", tmp_path, "--to", tmp_path / "out", "--push", "me/a/b")
    assert code == 1
    assert "--push me/a/b: is no name of a repository" in err


def test_that_nobody_is_logged_in_is_told(monkeypatch):
    def refuses(self):
        raise LocalTokenNotFoundError("none")

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", refuses)
    with pytest.raises(ZkitError, match="nobody is logged in to the hub: hf auth login, or set HF_TOKEN"):
        check_hub("me/mine", public=False)


def test_a_repository_that_is_public_is_not_pushed_to_by_mistake(monkeypatch):
    logged_in(monkeypatch, private=False)
    with pytest.raises(ZkitError, match="is there already and public; add --public"):
        check_hub("me/mine", public=False)
    check_hub("me/mine", public=True)
    logged_in(monkeypatch, private=True)
    check_hub("me/mine", public=False)


def test_public_without_push_is_an_error(tmp_path, capsys):
    code, _, err = call(capsys, "export", tmp_path / "no-run", "--to", tmp_path / "out", "--public")
    assert code == 1
    assert "--public: is for what is pushed" in err

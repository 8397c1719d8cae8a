"""A file's digest is of what it holds now, however it came to hold it."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from zephyr_kit.fingerprint import file_fingerprint


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZKIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "sun"}\n')
    return path


def edit(path: Path) -> None:
    """In place, and with its old times, as `touch -d` gives them back."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system may stand still for some milliseconds
        path.write_text('{"text": "fog"}\n')
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)


def test_an_edit_in_place_whose_time_is_set_back_is_found(file):
    before = file_fingerprint(file)
    edit(file)
    assert file_fingerprint(file) != before


def test_a_copy_a_touch_and_another_mode_change_nothing(file, tmp_path):
    before = file_fingerprint(file)
    copy = Path(shutil.copy(file, tmp_path / "copy.jsonl"))
    os.utime(file)
    file.chmod(0o600)
    assert file_fingerprint(file) == file_fingerprint(copy) == before


@pytest.mark.parametrize("noted", [b"", b"0", b"\xff\x00" * 32, b"x" * 64])
def test_a_note_that_is_damaged_is_no_digest(file, noted):
    before = file_fingerprint(file)
    (note,) = (file.parent / "cache" / "digests").iterdir()
    note.write_bytes(noted)
    assert file_fingerprint(file) == before
    assert note.read_text().startswith(before)


def test_what_is_known_is_not_read_again(file, monkeypatch):
    before = file_fingerprint(file)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("was read again"))
    assert file_fingerprint(file) == before

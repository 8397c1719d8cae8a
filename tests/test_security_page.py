"""Each promise of SECURITY.md, and each proof of docs/reliability.md, names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
PROMISES = [line for line in PAGE.partition("## What is promised")[2].partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]
PROOFS = (ROOT / "docs" / "reliability.md").read_text("utf-8").partition("## Proven by the ordinary tests")[2]
PROVEN = [line for line in PROOFS.splitlines() if re.match(r"\| [A-Z]\d", line)]


@pytest.mark.parametrize("promise", [*PROMISES, *PROVEN], ids=lambda promise: promise[2:40])
def test_a_promise_names_its_tests(promise: str) -> None:
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", promise)
    assert named
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), f"{file}::{test}"


def test_there_are_promises() -> None:
    assert len(PROMISES) > 15
    assert len(PROVEN) > 15

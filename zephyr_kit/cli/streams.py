"""What is printed, without secrets, whoever prints it: libraries, warnings and tracebacks too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from zephyr_kit.redaction import RedactingStream, secrets


@contextmanager
def without_secrets() -> Iterator[None]:
    """Within it; and in what Python says of an error that nobody has caught."""
    if not secrets():
        yield
        return
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("Any", RedactingStream(stream)) for stream in before)
    try:
        yield
    except Exception:
        sys.excepthook(*sys.exc_info())
        raise SystemExit(1) from None
    finally:
        sys.stdout, sys.stderr = before

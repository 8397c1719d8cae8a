"""llama.cpp's own programs, where they are on the PATH: types that Python's gguf cannot write."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from zephyr_kit import ZkitError

QUANTISER, CONVERTER = "llama-quantize", "convert_hf_to_gguf.py"
KNOWN = re.compile(r"(I?Q[1-8]_[A-Z0-9_]+|TQ[12]_0|F16|F32|BF16)", re.I)
LINES_TOLD = 3


def quantiser_problem(kind: str) -> str:
    """What is missing to quantise to a type; empty if nothing."""
    if not KNOWN.fullmatch(kind):
        return f"--gguf {kind}: no type of llama.cpp is named so; there are Q4_K_M, Q5_K_M, Q6_K, Q8_0, F16 and more"
    if shutil.which(QUANTISER) is None:
        return (
            f"--gguf {kind}: needs llama.cpp's {QUANTISER} on the PATH (github.com/ggml-org/llama.cpp); "
            "f32, f16, bf16 and q8_0 are written without it"
        )
    return ""


def quantise(source: Path, file: Path, kind: str) -> None:
    """Have a GGUF file in float16 or more written anew in few bits."""
    _run(QUANTISER, str(source), str(file), kind.upper())


def has_converter() -> bool:
    """Whether llama.cpp's converter is there, for architectures that are not written here."""
    return shutil.which(CONVERTER) is not None


def convert(folder: Path, file: Path, kind: str) -> None:
    """Have a folder in Hugging Face format converted."""
    _run(CONVERTER, str(folder), "--outfile", str(file), "--outtype", kind)


def _run(name: str, *arguments: str) -> None:
    program = shutil.which(name)
    if program is None:
        raise ZkitError(f"{name} is not on the PATH")
    # A script is run by this Python, for which it was installed.
    command = [sys.executable, program] if name.endswith(".py") else [program]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, errors="replace", check=False)  # noqa: S603  named by the user's PATH
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-LINES_TOLD:]
        raise ZkitError(f"{name} failed with exit code {done.returncode}: {' / '.join(lines)}")

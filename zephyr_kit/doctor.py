"""Whether this machine is fit for a run: what is installed, what it has, and what there is of it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from zephyr_kit.cache import cache_root
from zephyr_kit.cache_kinds import kinds
from zephyr_kit.plugins import Plugins
from zephyr_kit.sizes import in_words

FLOORS = {
    "torch": ("2.10", "CVE-2025-32434, CVE-2026-24747: files that run code when they are read"),
    "transformers": ("5.3", "CVE-2026-1839, CVE-2026-4372, CVE-2026-5241: code that runs unasked"),
    "accelerate": ("1.15", "CVE-2026-69112: files read outside the folder of a model"),
    "jinja2": ("3.1.6", "CVE-2025-27516: templates that leave the sandbox"),
}
"""Below these nothing is run: the first versions without what is named."""
USED = ("peft", "bitsandbytes", "safetensors", "tokenizers", "datasets", "huggingface-hub")
OWN = "zephyr-kit"
FOR_DEVELOPERS = ("bench", "dev")
"""Extras that nobody needs who only uses it."""
BESIDES = {"flash-attn": "flash_attn"}
"""What may be installed besides all extras, and the module by which it shows."""
LEAST_DISK = 2 * 2**30

Verdict = Literal["good", "remark", "refused"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    verdict: Verdict = "good"
    remark: str = ""


def version_problems() -> list[str]:
    """Installed packages that are too old to be safe, or missing."""
    return [f"{one.what} {one.found}: {one.remark}" for one in _floors() if one.verdict == "refused"]


def examine(plugins: Plugins) -> Iterator[Finding]:
    """All that `zkit doctor` looks at, in order."""
    yield Finding("python", platform.python_version())
    yield from _floors()
    yield from (Finding(name, installed(name) or "missing", "good" if installed(name) else "refused") for name in USED)
    yield from _extras()
    yield from (Finding(name, "there" if find_spec(module) else "not installed", "good") for name, module in BESIDES.items())
    yield from _machine()
    yield from _kernels(plugins)
    yield from _plugins(plugins)


def installed(name: str) -> str | None:
    """The version of a package; None if it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def lacking(distribution: str, extra: str = "") -> list[str]:
    """What a distribution, or one of its extras, requires and does not find, as pip writes it; empty if nothing, or if it is unknown."""
    return [str(one) for one in _required(distribution, extra) if not _is_met(one)]


def _is_met(one: Requirement) -> bool:
    found = installed(one.name)
    return found is not None and one.specifier.contains(found, prereleases=True)


def _required(distribution: str, extra: str) -> Iterator[Requirement]:
    try:
        lines = requires(distribution) or []
    except PackageNotFoundError:
        return
    for one in map(Requirement, lines):
        always = one.marker is None or one.marker.evaluate({"extra": ""})
        if (not extra and always) or (extra and not always and one.marker is not None and one.marker.evaluate({"extra": extra})):
            one.marker = None
            yield one


def _extras() -> Iterator[Finding]:
    """What each extra of ours brings, and what of it is not there."""
    for extra in metadata(OWN).get_all("Provides-Extra") or ():
        if extra not in FOR_DEVELOPERS:
            missing = lacking(OWN, extra)
            there = [f"{one.name} {installed(one.name)}" for one in _required(OWN, extra) if str(one) not in missing]
            found = ", ".join([*there, *(["lacks " + ", ".join(missing)] if missing else [])])
            yield Finding(f"extra {extra}", found, "good", f"pip install '{OWN}[{extra}]'" if missing else "")


def _floors() -> Iterator[Finding]:
    for name, (floor, why) in FLOORS.items():
        found = installed(name)
        if found is None:
            yield Finding(name, "missing", "refused", f"pip install '{name}>={floor}'")
        elif Version(found).release < Version(floor).release:
            yield Finding(name, found, "refused", f"older than {floor} ({why}); pip install --upgrade '{name}>={floor}'")
        else:
            yield Finding(name, found)


def _machine() -> Iterator[Finding]:
    import torch

    for number in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(number).total_memory
        yield Finding(f"cuda:{number}", f"{torch.cuda.get_device_name(number)}, {in_words(memory)}")
    if not torch.cuda.is_available():
        build = "" if torch.version.cuda else ", and this torch is built without CUDA"
        yield Finding("cuda", "none", "remark", f"everything runs on the CPU{build}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("memory", f"{in_words(memory)}, {os.cpu_count()} processors")
    yield Finding("kept", f"{in_words(sum(kind.size for kind in kinds(cache_root())))} between runs", "good", "zkit cache")
    for what, place in (("this folder", Path.cwd()), ("cache", cache_root()), ("hub cache", _hub_cache())):
        yield _disk(what, place)


def _disk(what: str, place: Path) -> Finding:
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    free, told = shutil.disk_usage(there).free, f"{place}"
    if not os.access(there, os.W_OK):
        return Finding(what, told, "refused", "cannot be written to")
    little = free < LEAST_DISK
    return Finding(what, f"{told}, {in_words(free)} free", "remark" if little else "good", "a checkpoint may not fit" if little else "")


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _kernels(plugins: Plugins) -> Iterator[Finding]:
    from zephyr_kit.devices import find_device
    from zephyr_kit.protocols import Attention, Backend, ChoosingAttention, ChoosingBackend

    device = find_device()
    for name, kind in plugins.offered(Attention).items():
        kernel = kind()
        problems = kernel.problems(device)
        told = kernel.choice(device) if isinstance(kernel, ChoosingAttention) else f"on {device}"
        yield Finding(f"attention {name}", "; ".join(problems) or told, "remark" if problems else "good")
    for name, backend in plugins.offered(Backend).items():
        if isinstance(backend, ChoosingBackend):
            yield from (Finding(f"{name} {what}", told) for what, told in backend.choices(device).items())


def _plugins(plugins: Plugins) -> Iterator[Finding]:
    for name, origin in plugins.origins.items():
        told = f"{origin.distribution} {origin.version}{'' if origin.is_ours else ', a third party'}"
        if name in plugins.blocked:
            yield Finding(f"plugin {name}", told, "remark", f"blocked by {plugins.blocker(name)}")
        else:
            broken = plugins.broken(name)
            missing = [] if origin.is_ours else lacking(origin.distribution)
            needs = [f"needs {one}, which is not installed" for one in missing]
            yield Finding(f"plugin {name}", told, "refused" if broken else "remark" if needs else "good", "; ".join([*broken, *needs]))

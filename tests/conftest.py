"""What every test may count on: no network, a cache of its own, one thread, and `shared` if it is there."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Before torch and huggingface_hub are imported, and for every process that a test starts. One
# thread: two on a busy machine wait for each other, and round differently.
os.environ.update({"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"})
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes that tests start need not compile every module of ours anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

LONGEST = (
    *("test_launch", "test_plan_command", "test_tutorial", "test_report_page", "test_recipe_on_real_data", "test_ranks"),
    *("test_against_trl", "test_kills", "test_suites", "test_smoke", "test_resume", "test_recipe_over_http", "test_sweep"),
    *("test_gathering_pipeline", "test_compiled", "test_reference_store", "test_crash_points", "test_stops", "test_disk"),
    *("test_cli", "test_loop", "test_evaluate", "test_gpu_benchmark", "test_objectives_run", "test_board"),
    *("test_two_ranks", "test_machines"),
)
"""Files that come first, so that no worker begins a long one when the others are at their end."""

# No test is timed, hypothesis's neither.
settings.register_profile("zephyr-kit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("zephyr-kit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what all tests have imported: nothing of it is ever garbage, and to look through it takes long


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`ZKIT_CACHE`, empty when the session begins."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZKIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and a real model, or a skip."""
    folder = Path(os.environ.get("ZKIT_SHARED") or Path(__file__).parents[2] / "shared").resolve()
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data in {folder} (set ZKIT_SHARED)")
    return folder


@pytest.fixture(scope="module")
def rehearsed_once() -> Iterator[None]:
    """The same step comes to the same on every device that is alone: no test of the module rehearses again what another has."""
    from zephyr_kit import forecast, rehearsal

    known: dict[tuple[str, str], rehearsal.Rehearsal] = {}

    def rehearse_once(planned: rehearsal.PlannedStep, *others: Any) -> rehearsal.Rehearsal:
        if any(each is not None for each in others):
            return rehearsal.rehearse(planned, *others)
        sizes = [(len(tree.prompt), *map(len, tree.completions), *map(sum, tree.trained)) for tree in planned.trees]
        key = repr(replace(planned, trees=())), repr(sizes)
        if key not in known:
            known[key] = rehearsal.rehearse(planned)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "rehearse", rehearse_once)
        yield


@pytest.fixture(scope="session")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preset of tests/launched.py, with its model and data beside it."""
    from launched import write_preset

    return write_preset(tmp_path_factory.mktemp("preset"))


@pytest.fixture(scope="session")
def alone(two_stages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its run on one device."""
    from launched import run

    output = tmp_path_factory.mktemp("alone") / "run"
    run(two_stages, output)
    return output

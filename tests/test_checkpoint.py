"""Checkpoints are whole or are not there: damage, crashes at every call, and what optimizers keep."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zkit_optimizers.adamw import AdamW, AdamW8bit, PagedAdamW8bit, PagedAdamW32bit
from zkit_sft.objective import Sft

from zephyr_kit.checkpoint import FACTS, MANIFEST, TENSORS, Begun, CheckpointError, Checkpoints, Manifest, State, read
from zephyr_kit.disk import checksum
from zephyr_kit.engine import Trainer
from zephyr_kit.heartbeat import Heart, Signs
from zephyr_kit.world import World


def state(step: int) -> State:
    tensors = {"trained/w": torch.full((7, 3), float(step)), "optimizer/0/step": torch.tensor(float(step))}
    return State(step, tensors, {"optimizer/0/kind": "x"})


def three(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints", keep=3)
    for step in (10, 20, 30):
        checkpoints.save(state(step))
    return checkpoints


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def assert_same(found: State | None, expected: State) -> None:
    assert found is not None
    assert found.step == expected.step
    assert dict(found.facts) == dict(expected.facts)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoints = three(tmp_path)
    found, remarks = checkpoints.newest()
    assert_same(found, state(30))
    assert remarks == []


def test_there_may_be_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").newest() == (None, [])


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_last_few_are_kept(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for step in range(1, 9):
        checkpoints.save(state(step))
    assert names(checkpoints) == [f"step-{step:08d}" for step in range(9 - keep, 9)]


def flip(path: Path, bit: int = 4000) -> None:
    data = bytearray(path.read_bytes())
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def swap_for_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", [TENSORS, FACTS, MANIFEST])
@pytest.mark.parametrize("damage", [flip, cut, grow, empty, remove, swap_for_folder])
def test_damage_is_found_and_the_older_one_taken_with_a_remark(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    checkpoints = three(tmp_path)
    damage(checkpoints.folder / "step-00000030" / name)
    found, remarks = checkpoints.newest()
    assert_same(found, state(20))
    assert len(remarks) == 1
    assert "checkpoint step-00000030 is not used: " in remarks[0]


def test_what_does_not_belong_there_is_found(tmp_path: Path) -> None:
    checkpoints = three(tmp_path)
    (checkpoints.folder / "step-00000030" / "notes.txt").write_text("mine")
    (checkpoints.folder / "step-00000020" / FACTS).unlink()
    found, remarks = checkpoints.newest()
    assert_same(found, state(10))
    assert remarks == [
        "checkpoint step-00000030 is not used: notes.txt does not belong there",
        f"checkpoint step-00000020 is not used: {FACTS} missing",
    ]


def test_a_manifest_of_another_checkpoint_is_found(tmp_path: Path) -> None:
    checkpoints = three(tmp_path)
    shutil.copy(checkpoints.folder / "step-00000020" / MANIFEST, checkpoints.folder / "step-00000030" / MANIFEST)
    assert_same(checkpoints.newest()[0], state(20))


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"state.json": 1}', "{}"])
def test_a_manifest_that_is_something_else_is_found(tmp_path: Path, text: str) -> None:
    checkpoints = three(tmp_path)
    (checkpoints.folder / "step-00000030" / MANIFEST).write_text(text)
    assert_same(checkpoints.newest()[0], state(20))


def test_facts_that_are_something_else_are_found(tmp_path: Path) -> None:
    """Also when the checksum was made to fit."""
    checkpoints = three(tmp_path)
    place = checkpoints.folder / "step-00000030"
    for text in ("[1]", "3", '"x"'):
        (place / FACTS).write_text(text)
        (place / MANIFEST).write_text(Manifest(30, {}, {name: checksum(place / name) for name in (TENSORS, FACTS)}).text())
        with pytest.raises(CheckpointError):
            read(place)


def test_a_checkpoint_under_another_name_is_found(tmp_path: Path) -> None:
    checkpoints = three(tmp_path)
    (checkpoints.folder / "step-00000020").rename(checkpoints.folder / "step-00000040")
    found, remarks = checkpoints.newest()
    assert_same(found, state(30))
    assert remarks == ["checkpoint step-00000040 is not used: it is of step 20"]


def test_a_checkpoint_of_another_run_is_found(tmp_path: Path) -> None:
    Checkpoints(tmp_path, run={"seed": 1}).save(state(10))
    Checkpoints(tmp_path, run={"seed": 2}).save(state(20))
    found, remarks = Checkpoints(tmp_path, run={"seed": 1}).newest()
    assert_same(found, state(10))
    assert remarks == ["checkpoint step-00000020 is not used: it is of another run: what that depends on is not the same"]


def test_the_best_is_kept_besides_the_last(tmp_path: Path) -> None:
    worth = {1: 0.1, 2: 0.9, 3: 0.5, 5: 0.2}
    checkpoints = Checkpoints(tmp_path, keep=1, worth=lambda: worth)
    for step in range(1, 6):
        checkpoints.save(state(step))
    assert names(checkpoints) == ["step-00000002", "step-00000005"]
    assert checkpoints.best() == 2


def test_tensors_of_every_type_are_read_by_safetensors(tmp_path: Path) -> None:
    types = [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
    tensors = {f"{kind}": torch.arange(7).to(kind) for kind in types}
    tensors |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.5), "view": torch.arange(12.0).view(3, 4)}
    place = Checkpoints(tmp_path).save(State(1, tensors, {}))
    assert_same(read(place), State(1, tensors, {}))
    from safetensors.torch import load_file

    assert load_file(place / TENSORS).keys() == tensors.keys()


def test_all_damaged_is_none_with_a_remark_for_each(tmp_path: Path) -> None:
    checkpoints = three(tmp_path)
    for place in checkpoints.folder.iterdir():
        cut(place / TENSORS)
    found, remarks = checkpoints.newest()
    assert found is None
    assert len(remarks) == 3


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([TENSORS, FACTS, MANIFEST]), st.integers(0, 1 << 20))
def test_any_bit_flipped_is_found_or_harmless(tmp_path: Path, name: str, bit: int) -> None:
    checkpoints = Checkpoints(tmp_path / "bits", keep=2)
    if not checkpoints.folder.exists():
        checkpoints.save(state(10))
        checkpoints.save(state(20))
    place = checkpoints.folder / "step-00000020"
    flip(place / name, bit)
    try:
        found, remarks = checkpoints.newest()
        assert found is not None
        assert_same(found, state(found.step))
        assert found.step == 10
        assert f"{name} " in remarks[0] or name == MANIFEST
    finally:
        flip(place / name, bit)


def test_going_on_from_an_older_one_never_loses_the_way(tmp_path: Path) -> None:
    """The damaged newer one must not count among those that are kept."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    Checkpoints(tmp_path, keep=2).save(state(10))
    Checkpoints(tmp_path, keep=2).save(state(20))
    flip(tmp_path / "step-00000020" / TENSORS)
    assert_same(checkpoints.newest()[0], state(10))
    checkpoints.save(state(15))
    found, remarks = checkpoints.newest()
    assert_same(found, state(15))
    assert remarks == []
    assert names(checkpoints) == ["step-00000015"]


def test_the_same_step_again_replaces_a_damaged_one(tmp_path: Path) -> None:
    checkpoints = three(tmp_path)
    flip(checkpoints.folder / "step-00000030" / TENSORS)
    checkpoints.save(state(30))
    found, remarks = checkpoints.newest()
    assert_same(found, state(30))
    assert remarks == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    checkpoints = three(tmp_path)
    leftover = checkpoints.folder / ".step-00000040.12345"
    leftover.mkdir()
    (leftover / TENSORS).write_bytes(b"half")
    assert_same(checkpoints.newest()[0], state(30))
    checkpoints.save(state(50))
    assert names(checkpoints) == ["step-00000020", "step-00000030", "step-00000050"]


def test_a_stray_file_is_remarked_on_and_not_in_the_way(tmp_path: Path) -> None:
    checkpoints = three(tmp_path)
    (checkpoints.folder / "step-00000099").write_text("?")
    found, remarks = checkpoints.newest()
    assert_same(found, state(30))
    assert len(remarks) == 1
    checkpoints.save(state(40))
    assert_same(checkpoints.newest()[0], state(40))


class CrashError(BaseException):
    """The process ends here."""


CALLS = ("rename", "fsync", "open", "mkdir", "unlink", "rmdir", "replace")


def crashing(patch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Let the `at`-th call that changes the disk, or opens a file, raise instead; return what was called."""
    import zephyr_kit.checkpoint as module

    called: list[str] = []

    def guard(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **options: Any) -> Any:
            called.append(name)
            if len(called) == at + 1:
                raise CrashError(name)
            return function(*args, **options)

        return guarded

    for name in CALLS:
        patch.setattr(os, name, guard(name, getattr(os, name)))
    patch.setattr(Path, "open", guard("open", Path.open))
    patch.setattr(module, "write_hashed", guard("write_hashed", module.write_hashed))
    return called


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_crash_at_any_call_leaves_a_usable_state(tmp_path: Path, keep: int, damaged: bool) -> None:
    """Before the rename the old one is found, after it the new one; the next save works and tidies up."""
    at, crashes = 0, 0
    while True:
        checkpoints = Checkpoints(tmp_path / str(at), keep)
        checkpoints.save(state(10))
        if damaged:
            Checkpoints(checkpoints.folder, keep=2).save(state(20))
            flip(checkpoints.folder / "step-00000020" / TENSORS)
        with pytest.MonkeyPatch.context() as patch:
            called = crashing(patch, at)
            try:
                checkpoints.save(state(20))
            except CrashError:
                crashes += 1
        if len(called) <= at:
            break
        found, _ = checkpoints.newest()
        assert found is not None, called
        assert found.step in (10, 20)
        assert_same(found, state(found.step))
        checkpoints.save(state(30))
        assert_same(checkpoints.newest()[0], state(30))
        assert not [name for name in names(checkpoints) if name.startswith(".")]
        assert len(names(checkpoints)) <= keep
        at += 1
    assert crashes == at > 8, "there were calls to crash at"


def test_half_written_bytes_are_never_in_place(tmp_path: Path) -> None:
    """A write that stops in the middle (a full disk) leaves the older one, and no trace after the next save."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(10))

    def half(path: Path, _: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zephyr_kit.checkpoint.write_hashed", half)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(state(20))
    assert names(checkpoints) == ["step-00000010"], "what is half written takes no room from others"
    assert_same(checkpoints.newest()[0], state(10))
    checkpoints.save(state(30))
    assert names(checkpoints) == ["step-00000010", "step-00000030"]


def test_what_is_half_written_takes_no_room_when_another_rank_fails_either(tmp_path: Path) -> None:
    world = World(0, 2, heart=Heart(Signs(tmp_path, 0)))
    checkpoints, staging = Checkpoints(tmp_path / "checkpoints", world=world), tmp_path / "checkpoints" / ".step-00000020.1"
    staging.mkdir(parents=True)
    Signs(tmp_path, 1).broken.touch()
    with pytest.raises(RuntimeError, match="a rank has ended"):
        checkpoints.write(Begun(state(20), staging, [0, 1]))
    assert names(checkpoints) == []


def test_what_went_wrong_is_told_also_if_nothing_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk) -> None:
    disk.turn.set()
    disk.error = OSError(28, "No space left")

    def still_written_to(*_: Any, **__: Any) -> None:
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(os, "rmdir", still_written_to)
    with pytest.raises(OSError, match="No space left"):
        Checkpoints(tmp_path).save(state(20))


class Disk:
    """A disk that writes when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        import zephyr_kit.checkpoint as module

        self.write, self.turn, self.begun = module.write_hashed, threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.num_busy, self.most_busy = 0, 0
        patch.setattr(module, "write_hashed", self)

    def __call__(self, path: Path, pieces: Any) -> Any:
        self.num_busy += 1
        self.most_busy = max(self.most_busy, self.num_busy)
        self.begun.set()
        assert self.turn.wait(60)
        self.num_busy -= 1
        if self.error is not None:
            raise self.error
        return self.write(path, pieces)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, disk: Disk) -> None:
    checkpoints, going = Checkpoints(tmp_path), state(10)
    with checkpoints.saving() as save:
        save(going)
        assert disk.begun.wait(60)
        for tensor in going.tensors.values():
            tensor.add_(5)
        assert checkpoints.newest() == (None, [])
        disk.turn.set()
        for step in (20, 30, 40):
            save(state(step))
    assert disk.most_busy == 1
    assert names(checkpoints) == ["step-00000030", "step-00000040"]
    assert_same(read(tmp_path / "step-00000030"), state(30))
    with checkpoints.saving() as save:
        save(state(10))
    assert_same(checkpoints.newest()[0], state(10))


@pytest.mark.parametrize("again", [False, True])
def test_what_goes_wrong_beside_is_raised_at_the_next_save_or_at_the_end(tmp_path: Path, disk: Disk, again: bool) -> None:
    disk.turn.set()
    disk.error = OSError(28, "No space left")
    saved: list[int] = []
    with pytest.raises(OSError, match="No space left"), Checkpoints(tmp_path).saving() as save:  # noqa: PT012  as a loop has it
        for step in (10, 20) if again else (10,):
            save(state(step))
            saved.append(step)
    assert saved == [10]
    disk.error = None
    Checkpoints(tmp_path).save(state(30))
    assert names(Checkpoints(tmp_path)) == ["step-00000030"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("in the middle of a step")])
def test_a_checkpoint_that_is_being_written_is_finished_whatever_happens(tmp_path: Path, disk: Disk, error: BaseException) -> None:
    def interrupted() -> None:
        with Checkpoints(tmp_path).saving() as save:
            save(state(10))
            assert disk.begun.wait(60)
            threading.Timer(0.05, disk.turn.set).start()
            raise error

    with pytest.raises(type(error)) as raised:
        interrupted()
    assert raised.value is error
    assert_same(Checkpoints(tmp_path).newest()[0], state(10))


class _Quadratic:
    """A policy-shaped holder of parameters large enough for 8-bit state."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.module = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.Linear(64, 80)).to(dtype)


def trainer(factory: AdamW, dtype: torch.dtype = torch.float32) -> Trainer:
    policy: Any = _Quadratic(dtype)
    return Trainer(policy, Sft(), optimizer=partial(factory.build, learning_rate=1e-2), learning_rate=lambda _: 1e-2, seed=0)


def advance(trainer: Trainer, steps: int) -> None:
    for number in range(steps):
        torch.manual_seed(trainer.num_steps_taken)
        dtype = next(trainer.policy.module.parameters()).dtype
        trainer.policy.module(torch.randn(16, 96).to(dtype)).square().mean().backward()
        trainer._update(1e-2 / (number + 1), torch.zeros(()))
        trainer.num_steps_taken += 1


@pytest.mark.parametrize("factory", [AdamW(), AdamW8bit(), PagedAdamW8bit(), PagedAdamW32bit()], ids=lambda factory: type(factory).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_optimizers_come_back_to_the_bit(tmp_path: Path, factory: AdamW, dtype: torch.dtype) -> None:
    """Also where they work on float32 masters."""
    straight, first = trainer(factory, dtype), trainer(factory, dtype)
    advance(straight, 3)
    advance(first, 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(first.state())
    found, _ = checkpoints.newest()
    assert found is not None
    again = trainer(factory, dtype)
    again.load_state(found)
    assert again.num_steps_taken == 3
    assert all(parameter.dtype == torch.float32 for parameter in again.parameters)
    if "8bit" in type(factory).__name__:
        assert any(tensor.dtype == torch.uint8 for tensor in found.tensors.values()), "the state is kept in 8 bits"
    assert_same(again.state(), straight.state())
    advance(straight, 3)
    advance(again, 3)
    for one, other in zip(straight.parameters, again.parameters, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(straight.policy.module.parameters(), again.policy.module.parameters(), strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other)
    assert_same(again.state(), straight.state())


def test_an_optimizer_that_has_taken_no_step_comes_back(tmp_path: Path) -> None:
    place = Checkpoints(tmp_path).save(trainer(AdamW()).state())
    again = trainer(AdamW())
    again.load_state(read(place))
    advance(again, 1)
    assert again.num_steps_taken == 1


@pytest.mark.parametrize(("factory", "theirs"), [(AdamW8bit(), "AdamW8bit"), (PagedAdamW32bit(), "AdamW")])
def test_bitsandbytes_is_mended_and_not_changed(factory: AdamW, theirs: str) -> None:
    import bitsandbytes

    ours, plain = trainer(factory), trainer(factory)
    plain.optimizer = getattr(bitsandbytes.optim, theirs)(plain.parameters, lr=1e-2, weight_decay=0.0)
    for each in (ours, plain):
        advance(each, 4)
    for one, other in zip(ours.parameters, plain.parameters, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("factory", [PagedAdamW8bit(), PagedAdamW32bit()], ids=lambda factory: type(factory).__name__)
def test_paged_state_is_paged_again_when_training_goes_on(monkeypatch: pytest.MonkeyPatch, factory: AdamW) -> None:
    """As on a GPU, where bitsandbytes would put the whole state on the device."""
    from zkit_optimizers.pages import MendedAdamW

    first, again = trainer(factory), trainer(factory)
    advance(first, 2)
    pages: list[torch.Tensor] = []

    def page(_: MendedAdamW, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pages.append(torch.zeros_like(parameter, dtype=dtype))
        return pages[-1]

    monkeypatch.setattr(MendedAdamW, "get_state_buffer", page)
    again.optimizer.is_paged = True  # type: ignore[attr-defined]
    again.load_state(first.state())
    places = {state[name].data_ptr() for state in again.optimizer.state.values() for name in ("state1", "state2")}
    assert places == {tensor.data_ptr() for tensor in pages}
    assert_same(again.state(), first.state())

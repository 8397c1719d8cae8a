"""K2, N1 on two ranks: one dies inside a save that both write, or alone has what is no number."""

from __future__ import annotations

import math
import random
from functools import reduce

import pytest
from launched import assert_same_weights, run, write_preset

from .hits import SAVE, Both, Poison, Signal
from .job import metrics, times, write_job

pytestmark = pytest.mark.timeout(7200)
KILLS = 5
"""In one run, which its launcher keeps going."""
HASHED = "zephyr_kit.checkpoint:write_hashed"
PLACES = {
    0: {SAVE: 1, HASHED: 3, "zephyr_kit.checkpoint:put": 1},
    1: {SAVE: 1, HASHED: 2, "zephyr_kit.checkpoint:Begun.write_share": 1},
}
"""Of a save, by rank, and how often each is come to: for tensors, facts and manifest; for a share, and the note of its checksum."""


def kill(draw: random.Random, start: int) -> Signal:
    """In the middle of writing, or at once before a call, after some steps."""
    rank = draw.randrange(2)
    place, calls = draw.choice(list(PLACES[rank].items()))
    after = draw.choice([0.0, draw.uniform(0.0002, 0.006)])
    return Signal(place, call=draw.randint(1, 2) * calls + draw.randint(1, calls), after=after, rank=rank, start=start)


def test_k2_ranks_killed_inside_saves_that_they_share(tmp_path, tell):
    runs, draw, same = times(1, 10), random.Random(22), 0
    job = write_job(tmp_path / "job", model="", steps=times(8, 24), alone=True)
    options = ("--devices", "2", "--set", "stages.sft.train.sharding=sharded")
    run(job.preset, tmp_path / "straight", *options)
    for number in range(runs):
        output = tmp_path / f"run-{number}"
        kills = [kill(draw, start) for start in range(times(2, KILLS))]
        said = run(job.preset, output, *options, prepare=reduce(Both, kills))
        found = said.count("was ended by SIGKILL")
        same += found if job.result(output) == job.result(tmp_path / "straight") else 0
    tell("K2, two ranks", same, runs * times(2, KILLS), "by the launcher alone")


def test_n1_what_is_no_number_on_one_rank_changes_no_weight_on_any(tmp_path, tell):
    """As if one process had come to it, in the loss and, later, in a gradient."""
    preset, faults = write_preset(tmp_path), ((4, "loss"), (7, "gradient"))
    for name, rank, options in (("one", None, ()), ("two", 1, ("--devices", "2"))):
        poisons = [Poison((step,), math.nan, what, rank) for step, what in faults]
        run(preset, tmp_path / name / "run", *options, prepare=reduce(Both, poisons))
    one, two = (rows_skipped(tmp_path / name / "run" / "sft") for name in ("one", "two"))
    assert one == two
    assert_same_weights(tmp_path / "one" / "run", tmp_path / "two" / "run")
    tell("N1", len(two.keys() & {5, 8}), len(faults), "on one rank of two")


def rows_skipped(stage):
    return {line["step"]: line["rows"] for line in metrics(stage) if line.get("skipped")}

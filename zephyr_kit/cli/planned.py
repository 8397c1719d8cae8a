"""What `zkit plan` tells of each stage that trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.corpus import Corpus
from zephyr_kit.devices import Device
from zephyr_kit.forecast import Forecast, Outlook, foretell_first_that_fits, over_devices, skeleton_start
from zephyr_kit.gathered import are_there
from zephyr_kit.observe import Narrator
from zephyr_kit.preset import Preset, Stage, bound
from zephyr_kit.protocols import Start
from zephyr_kit.remedy import Remedy, find_remedy
from zephyr_kit.stage_data import prepare_part
from zephyr_kit.stages import TrainStage
from zephyr_kit.world import World


@dataclass(frozen=True)
class Planned:
    """A stage, foreseen or not."""

    stage: Stage
    task: TrainStage
    forecast: Forecast | None
    """None where it cannot be foreseen."""
    remedy: Remedy | None
    """With what it fits, where it does not."""
    remarks: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """As far as is known."""
        return self.forecast is None or self.forecast.fits

    def facts(self) -> dict[str, Any]:
        """For a program."""
        common = {"stage": self.stage.name, "fits": self.fits, "remarks": list(self.remarks)}
        forecast = self.forecast
        if forecast is None:
            return common
        shape = forecast.rehearsal.shape
        memory = {"peak": forecast.peak, "of": forecast.device.memory, "by_part": forecast.parts, "checkpoint": forecast.rehearsal.state}
        return {
            **common,
            "tokens_per_batch": {"value": forecast.tokens_per_batch, "chosen_by_the_plan": forecast.chosen},
            "parameters": {"all": shape.num_parameters, "trained": shape.num_trained},
            "bytes": memory,
            "data": None if forecast.workload is None else asdict(forecast.workload),
            "seconds": None if forecast.seconds is None else round(forecast.seconds, 3),
            "operations_a_second": forecast.rate,
            "sharded": forecast.sharded,
            "would_fit_with": None if self.remedy is None else list(self.remedy.changes),
        }


def look_ahead(preset: Preset, device: Device, world: World, narrator: Narrator, run: Path, *, with_data: bool) -> Iterator[Planned]:
    """Every stage that trains."""
    for stage in (bound(each, run) for each in preset.stages):
        if isinstance(stage.task, TrainStage):
            corpus, remark = _corpus(stage, stage.task, preset.seed, narrator) if with_data else (None, "planned without its data")
            outlook = Outlook(stage, stage.task, skeleton_start(preset, stage), device, preset.seed, corpus)
            with narrator.track(f"planning stage {stage.name}"):
                planned = _planned(stage, stage.task, over_devices(outlook, world), remark)
            yield planned


def _planned(stage: Stage, task: TrainStage, ways: Sequence[Outlook], remark: str) -> Planned:
    way, forecast, reason = foretell_first_that_fits(ways)
    if forecast is None:
        return Planned(stage, task, None, None, tuple(filter(None, (reason, stage.remark))))
    remedy = None if forecast.fits else find_remedy(way)
    return Planned(stage, task, forecast, remedy, tuple(filter(None, (forecast.rehearsal.remark, stage.remark, remark))))


def _corpus(stage: Stage, task: TrainStage, seed: int, narrator: Narrator) -> tuple[Corpus | None, str]:
    """The data as the run would have it, or why it is not to be had."""
    if not are_there(task.data):
        return None, "its data has not been gathered yet"
    for number, portion in enumerate(task.data):
        for problem in [*portion.source.problems(), *(line for each in portion.filters for line in each.problems())]:
            return None, f"data[{number}] is not at hand, so steps and time are not known: {problem.partition('. ')[0]}"
    try:
        tokenizer = stage.model.tokenizer(Start(None, stage.changed, seed))
    except (OSError, ValueError, ZkitError) as error:
        return None, f"its tokenizer is not at hand: {(str(error).splitlines() or [''])[0]}"
    corpus = prepare_part(task, task.data, tokenizer, narrator, f"data of {stage.name}")
    return (corpus, "") if len(corpus) else (None, "none of its data is left to train on")
